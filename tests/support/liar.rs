//! A fuzzing server in place of the metadata service: it sends arbitrary answers, from a seed. After
//! [`FuzzingServer::start_forwarding`] it forwards each connection to the real test service.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::MetadataService;
use super::dice::SeededRng;
use super::server::LoopbackServer;

/// A fuzzing server. It ends with the test.
pub struct FuzzingServer {
    server: LoopbackServer,
    shared: Arc<FuzzingState>,
}

struct FuzzingState {
    dice: Mutex<SeededRng>,
    /// Bodies that are close to a valid command. The server sends them among the random bytes.
    pool: Vec<Vec<u8>>,
    service: SocketAddr,
    honest: AtomicBool,
    polls: AtomicUsize,
    results: AtomicUsize,
}

impl FuzzingServer {
    /// Starts the server in front of `service`.
    pub fn start(service: &MetadataService, seed: u64, pool: Vec<Vec<u8>>) -> Self {
        let shared = Arc::new(FuzzingState {
            dice: Mutex::new(SeededRng::from_seed(seed)),
            pool,
            service: service.address(),
            honest: AtomicBool::new(false),
            polls: AtomicUsize::new(0),
            results: AtomicUsize::new(0),
        });
        let for_thread = Arc::clone(&shared);
        let server = LoopbackServer::start(move |stream, _| for_thread.serve_fuzzed(stream));
        Self { server, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}/metadata/latest", self.server.address)
    }

    /// From now on, forwards all connections to the real test service.
    pub fn start_forwarding(&self) {
        self.shared.honest.store(true, Ordering::Relaxed);
    }

    /// The number of polls for a command so far.
    pub fn poll_count(&self) -> usize {
        self.shared.polls.load(Ordering::Relaxed)
    }

    /// The number of results that the agent sent so far, including repeated ones.
    pub fn result_count(&self) -> usize {
        self.shared.results.load(Ordering::Relaxed)
    }
}

impl FuzzingState {
    fn serve_fuzzed(&self, mut stream: TcpStream) {
        if self.honest.load(Ordering::Relaxed) {
            return proxy_connection(stream, self.service);
        }
        let mut head = Vec::new();
        let mut bytes = [0; 4096];
        while !head.windows(4).any(|four| four == b"\r\n\r\n") {
            match stream.read(&mut bytes) {
                Ok(read) if read > 0 => head.extend_from_slice(&bytes[..read]),
                _ => return,
            }
        }
        let asks_for_command = head.starts_with(b"GET") && head.windows(15).any(|w| w == b"keypair/command");
        if asks_for_command {
            self.polls.fetch_add(1, Ordering::Relaxed);
        } else if head.windows(15).any(|words| words == b"keypair/results") {
            self.results.fetch_add(1, Ordering::Relaxed);
        }
        let (answer, manner) = {
            let mut dice = self.dice.lock().unwrap();
            // Without an instance id from time to time, the agent would never poll for a command.
            let answer = if head.starts_with(b"GET") && !asks_for_command && dice.next_below(2) == 0 {
                build_ok_response(["i-test", "\"i-test\"", "i-other"][dice.next_below(3)].as_bytes())
            } else {
                random_response(&mut dice, &self.pool)
            };
            (answer, SendMode::random(&mut dice))
        };
        // An error is expected: the agent may close the connection before it has read everything.
        let _ = manner.send(&mut stream, &answer);
    }
}

/// Forwards one connection in both directions.
fn proxy_connection(stream: TcpStream, service: SocketAddr) {
    let Ok(other) = TcpStream::connect(service) else { return };
    let (mut from, mut to) = (stream.try_clone().unwrap(), other.try_clone().unwrap());
    let back = thread::spawn(move || {
        let (mut other, mut stream) = (other, stream);
        let _ = io::copy(&mut other, &mut stream);
        let _ = stream.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
    back.join().unwrap();
}

/// How the server sends an answer.
enum SendMode {
    Full,
    /// The first bytes in small pieces.
    Slow,
    /// At most this many thousandths of the answer.
    Truncated(usize),
    /// Keeps the connection open for this time before it closes it.
    DelayedClose(Duration),
    /// Repeats the answer for as long as the client reads.
    Endless,
}

impl SendMode {
    fn random(dice: &mut SeededRng) -> Self {
        match dice.next_below(10) {
            0 => Self::Slow,
            1 => Self::Truncated(dice.next_below(1000)),
            2 => Self::DelayedClose(Duration::from_millis(dice.next_below(3000) as u64)),
            3 => Self::Endless,
            _ => Self::Full,
        }
    }

    fn send(&self, stream: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
        match self {
            Self::Full => stream.write_all(answer),
            Self::Truncated(thousandths) => stream.write_all(&answer[..answer.len() * thousandths / 1000]),
            Self::Slow => {
                let (first, rest) = answer.split_at(answer.len().min(100));
                for few in first.chunks(3) {
                    stream.write_all(few)?;
                    thread::sleep(Duration::from_millis(10));
                }
                stream.write_all(rest)
            }
            Self::DelayedClose(time) => {
                stream.write_all(answer)?;
                thread::sleep(*time);
                Ok(())
            }
            Self::Endless => {
                // Some 16 MiB: far more than the agent ever reads.
                for _ in 0..(16 << 20) / (answer.len() + 1) {
                    stream.write_all(answer)?;
                    stream.write_all(b"\n")?;
                }
                Ok(())
            }
        }
    }
}

fn build_ok_response(body: &[u8]) -> Vec<u8> {
    concat_head(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()), body)
}

fn concat_head(head: &str, body: &[u8]) -> Vec<u8> {
    [head.as_bytes(), body].concat()
}

/// Random bytes in place of a whole HTTP response.
fn random_response(dice: &mut SeededRng, pool: &[Vec<u8>]) -> Vec<u8> {
    let body = random_body(dice, pool);
    let length = body.len();
    let answer = match dice.next_below(20) {
        0 => (0..dice.next_below(4096)).map(|_| dice.next_below(256) as u8).collect(),
        1 => Vec::new(),
        2 => concat_head(
            &format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(dice.next_below(3000))),
            &body,
        ),
        3 => concat_head(
            &format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(dice.next_below(70_000))),
            &body,
        ),
        4 => {
            let status = 100 + dice.next_below(900);
            concat_head(&format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n"), &body)
        }
        5 => concat_head(&format!("HTTP/1.1 204 No Content\r\nContent-Length: {length}\r\n\r\n"), &body),
        6 | 14 => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        7 => {
            let size = ["0", "2", "ffffffffffffffff", "10000000000000000", "-1", "x", ""][dice.next_below(7)];
            let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n");
            [head.as_bytes(), &body, format!("\r\n{size}\r\n\r\n").as_bytes()].concat()
        }
        8 => {
            let said = [length / 2, length + 1, 70_000, usize::MAX][dice.next_below(4)];
            concat_head(&format!("HTTP/1.1 200 OK\r\nContent-Length: {said}\r\n\r\n"), &body)
        }
        9 => concat_head(
            &format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nContent-Length: 1\r\n\r\n"),
            &body,
        ),
        10 => [build_ok_response(&body), build_ok_response(&body)].concat(),
        11 => concat_head("HTTP/1.0 200 OK\r\n\r\n", &body),
        12 => concat_head("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", &body),
        13 => {
            let pause = ["0", "1", "-1", "soon", "Thu, 01 Jan 1970 00:00:00 GMT", ""][dice.next_below(6)];
            concat_head(&format!("HTTP/1.1 503 Busy\r\nRetry-After: {pause}\r\n\r\n"), &body)
        }
        _ => build_ok_response(&body),
    };
    if dice.next_below(8) == 0 { mutate_bytes(dice, answer) } else { answer }
}

/// Random bytes in place of a command.
fn random_body(dice: &mut SeededRng, pool: &[Vec<u8>]) -> Vec<u8> {
    let size = dice.next_below(70_000);
    match dice.next_below(12) {
        0 => "[".repeat(size).into_bytes(),
        1 => format!("{{\"commandId\":\"c-1\",\"x\":{}", "{\"a\":".repeat(size / 5)).into_bytes(),
        2 => format!("{{\"commandId\":\"c-{}\",\"keyName\":\"{}\"}}", size, "k".repeat(size)).into_bytes(),
        3 => format!("{{{}\"commandId\":\"c-1\"}}", "\"commandId\":\"c-2\",".repeat(size / 18)).into_bytes(),
        4 => br#"{"commandId":"c-\ud800","action":"\udfff\ud800","keyName":"\u0000"}"#.to_vec(),
        5 => format!("{{\"commandId\":\"c-{size}\",\"sequence\":{}e{size}}}", size).into_bytes(),
        6 => (0..size / 10).map(|_| dice.next_below(256) as u8).collect(),
        7 => b"[]".to_vec(),
        8 => {
            let taken = pool[dice.next_below(pool.len())].clone();
            mutate_bytes(dice, taken)
        }
        _ => pool[dice.next_below(pool.len())].clone(),
    }
}

/// The same bytes with a few of them changed, removed or doubled.
fn mutate_bytes(dice: &mut SeededRng, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..=dice.next_below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = dice.next_below(bytes.len());
        match dice.next_below(3) {
            0 => bytes[at] ^= 1 << dice.next_below(8),
            1 => drop(bytes.remove(at)),
            _ => bytes.insert(at, bytes[at]),
        }
    }
    bytes
}
