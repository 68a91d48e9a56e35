//! A bad way to a metadata service: a proxy, a process of its own, that does to each connection what it was last told to.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use keypair_agent::channel::backoff::random_u64;
use keypair_controlplane::descriptors::raise_nofile_limit;
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};

/// How late a slow service is.
pub(crate) const SLOW_DELAY: Duration = Duration::from_secs(5);

/// How the way is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProxyFault {
    None,
    /// Every second connection, by chance, gets 503 and nothing else.
    HalfFails,
    /// Each goes on only after [`SLOW_DELAY`].
    Slow,
}

const ALL_FAULTS: [ProxyFault; 3] = [ProxyFault::None, ProxyFault::HalfFails, ProxyFault::Slow];

/// What makes this program the proxy.
pub(crate) const PROXY_SUBCOMMAND: &str = "trouble";

/// The proxy's process, ended with the value.
pub(crate) struct FaultProxy {
    child: Child,
    orders: ChildStdin,
    said: BufReader<ChildStdout>,
    pub(crate) address: String,
}

impl FaultProxy {
    pub(crate) fn start(to: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([PROXY_SUBCOMMAND, to])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let address = read_trimmed_line(&mut said);
        Self { orders: child.stdin.take().unwrap(), said, child, address }
    }

    /// From now on the way is so. How many connections were made to suffer before.
    pub(crate) fn set_fault(&mut self, trouble: ProxyFault) -> u64 {
        writeln!(self.orders, "{}", trouble as u8).unwrap();
        read_trimmed_line(&mut self.said).parse().unwrap()
    }
}

fn read_trimmed_line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The proxy itself, until its orders end.
pub(crate) fn run_proxy(to: SocketAddr) {
    raise_nofile_limit().unwrap();
    let trouble = Arc::new(AtomicU8::new(0));
    let suffered = Arc::new(AtomicU64::new(0));
    let (told, counted) = (trouble.clone(), suffered.clone());
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            told.store(line.parse().unwrap(), Ordering::SeqCst);
            println!("{}", counted.load(Ordering::SeqCst));
        }
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let trouble = ALL_FAULTS[usize::from(trouble.load(Ordering::SeqCst))];
            tokio::spawn(forward_connection(stream, to, trouble, suffered.clone()));
        }
    });
}

async fn forward_connection(
    mut from: TcpStream,
    to: SocketAddr,
    trouble: ProxyFault,
    suffered: Arc<AtomicU64>,
) {
    match trouble {
        ProxyFault::None => {}
        ProxyFault::Slow => {
            suffered.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(SLOW_DELAY).await;
        }
        ProxyFault::HalfFails if random_u64().is_multiple_of(2) => {
            suffered.fetch_add(1, Ordering::SeqCst);
            // The request is read first: a connection that is closed over it is a reset to its sender.
            let _ = from.readable().await;
            let _ = from.try_read(&mut [0; 4096]);
            let _ = from
                .write_all(
                    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                )
                .await;
            return;
        }
        ProxyFault::HalfFails => {}
    }
    if let Ok(mut to) = TcpStream::connect(to).await {
        let _ = copy_bidirectional_with_sizes(&mut from, &mut to, 1024, 1024).await;
    }
}
