//! A server on loopback that lives as long as its value. Each connection has its own thread.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

pub struct LoopbackServer {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl LoopbackServer {
    /// Starts a server that calls `serve` for each connection. The flag tells `serve` when to end.
    pub fn start(serve: impl Fn(TcpStream, &AtomicBool) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (serve, stopped) = (Arc::new(serve), Arc::clone(&stop));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (serve, stopped) = (Arc::clone(&serve), Arc::clone(&stopped));
                thread::spawn(move || serve(stream, &stopped));
            }
        });
        Self { address, stop }
    }

    /// From now on, accepts no new connection.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

impl Drop for LoopbackServer {
    fn drop(&mut self) {
        self.stop();
    }
}
