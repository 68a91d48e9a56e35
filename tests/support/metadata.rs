//! A metadata service that implements the HTTP protocol (KP-3.6). Tests can make it misbehave.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use serde_json::Value;

use super::server::LoopbackServer;

/// A faulty answer to `keypair/command`, instead of a command.
#[derive(Clone, Debug, PartialEq)]
pub enum PollFault {
    /// These bytes: status line, headers and body.
    Raw(Vec<u8>),
    /// No answer; the connection stays open.
    Hang,
    /// One byte of the head per second.
    Drip,
}

/// One request that the service received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceRequest {
    /// `instance-id`
    InstanceId,
    /// `keypair/command`, with its `wait`.
    Poll(u64),
    /// A result (its command id), independent of the answer.
    Result(String),
    /// `keypair/agent`
    AgentReport,
}

#[derive(Default)]
struct Inner {
    commands: VecDeque<Value>,
    results: Vec<(String, String)>,
    announced: Vec<Value>,
    polls: Vec<Instant>,
    fault: Option<PollFault>,
    refuse_results: bool,
    result_status: Option<u16>,
    /// The largest result in bytes that the service accepts.
    result_limit: Option<usize>,
    keep_commands: bool,
    instance: Option<String>,
    attempts: Vec<(String, String)>,
    asked: Vec<ServiceRequest>,
}

/// The test service. It ends with the test.
pub struct MetadataService {
    server: LoopbackServer,
    shared: Arc<(Mutex<Inner>, Condvar)>,
}

impl MetadataService {
    pub fn start() -> Self {
        let shared = Arc::new((Mutex::new(Inner::default()), Condvar::new()));
        let for_thread = Arc::clone(&shared);
        let server = LoopbackServer::start(move |stream, stop| serve_connection(stream, &for_thread, stop));
        Self { server, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}/metadata/latest", self.server.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Queues a command. The service returns it to every poll until it has stored the command's result.
    pub fn queue(&self, command: Value) {
        self.shared.0.lock().unwrap().commands.push_back(command);
        self.shared.1.notify_all();
    }

    pub fn set_fault(&self, fault: Option<PollFault>) {
        self.shared.0.lock().unwrap().fault = fault;
        self.shared.1.notify_all();
    }

    /// Sets whether the service answers results with 503.
    pub fn refuse_results(&self, refuse: bool) {
        self.shared.0.lock().unwrap().refuse_results = refuse;
    }

    /// Sets the status with which the service answers results, without storing them. `None`: it answers as specified.
    pub fn set_result_status(&self, status: Option<u16>) {
        self.shared.0.lock().unwrap().result_status = status;
    }

    /// Sets the largest result in bytes that the service accepts. It answers larger ones with 413.
    pub fn limit_results(&self, bytes: usize) {
        self.shared.0.lock().unwrap().result_limit = Some(bytes);
    }

    /// Sets whether the service returns a command again after it has stored the result.
    pub fn keep_commands(&self, keep: bool) {
        self.shared.0.lock().unwrap().keep_commands = keep;
    }

    /// Removes the command from the queue, whether it has a result or not.
    pub fn withdraw_command(&self, id: &str) {
        self.shared.0.lock().unwrap().commands.retain(|command| command_id_of(command) != id);
    }

    /// Forgets a stored result, as if the platform had never received it.
    pub fn forget_result(&self, id: &str) {
        self.shared.0.lock().unwrap().results.retain(|(stored, _)| stored != id);
    }

    /// Resets the service: nothing is queued, nothing is stored.
    pub fn reset(&self) {
        *self.shared.0.lock().unwrap() = Inner::default();
    }

    /// Stores a result before any agent sends one.
    pub fn insert_result(&self, id: &str, text: &str) {
        self.shared.0.lock().unwrap().results.push((id.to_owned(), text.to_owned()));
    }

    /// Sets the instance id that the service returns.
    pub fn set_instance_id(&self, id: &str) {
        self.shared.0.lock().unwrap().instance = Some(id.to_owned());
    }

    /// Every result that arrived, stored or not, byte for byte.
    pub fn result_attempts(&self) -> Vec<(String, String)> {
        self.shared.0.lock().unwrap().attempts.clone()
    }

    /// All requests, in the order of their arrival.
    pub fn requests(&self) -> Vec<ServiceRequest> {
        self.shared.0.lock().unwrap().asked.clone()
    }

    /// Waits until this many polls have arrived.
    pub fn wait_for_polls(&self, count: usize) {
        super::wait_for(&format!("{count} polls"), || (self.polls().len() >= count).then_some(()));
    }

    /// Every result that was stored, in order, byte for byte.
    pub fn results(&self) -> Vec<(String, String)> {
        self.shared.0.lock().unwrap().results.clone()
    }

    pub fn result(&self, id: &str) -> Option<Value> {
        let inner = self.shared.0.lock().unwrap();
        // Searches from the end, because there may be thousands.
        let (_, text) = inner.results.iter().rev().find(|(stored, _)| stored == id)?;
        Some(serde_json::from_str(text).unwrap())
    }

    pub fn wait_for_result(&self, id: &str) -> Value {
        super::wait_for(&format!("the result of {id}"), || self.result(id))
    }

    pub fn agent_reports(&self) -> Vec<Value> {
        self.shared.0.lock().unwrap().announced.clone()
    }

    /// The time at which each poll for a command began.
    pub fn polls(&self) -> Vec<Instant> {
        self.shared.0.lock().unwrap().polls.clone()
    }
}

impl Drop for MetadataService {
    fn drop(&mut self) {
        // Wakes the polls that wait for a command, so that they see the stop.
        self.server.stop();
        self.shared.1.notify_all();
    }
}

/// The id of a command, signed (in an envelope) or not.
fn command_id_of(command: &Value) -> Value {
    let payload = command["payload"].as_str().and_then(|payload| Base64::decode_vec(payload).ok());
    let payload = payload.and_then(|payload| serde_json::from_slice::<Value>(&payload).ok());
    payload.as_ref().unwrap_or(command)["commandId"].clone()
}

fn serve_connection(stream: TcpStream, shared: &(Mutex<Inner>, Condvar), stop: &AtomicBool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let Some((method, path, body)) = read_request(&mut reader) else { return };
        let path = path.strip_prefix("/metadata/latest/").unwrap_or(&path).to_owned();
        let (resource, query) = path.split_once('?').unwrap_or((&path, ""));
        let answered = match (method.as_str(), resource) {
            ("GET", "instance-id") => {
                let mut inner = shared.0.lock().unwrap();
                inner.asked.push(ServiceRequest::InstanceId);
                let id = inner.instance.clone().unwrap_or_else(|| "i-test".to_owned());
                drop(inner);
                write_response(&mut stream, 200, &format!("\"{id}\""))
            }
            ("GET", "keypair/command") => answer_poll(&mut stream, shared, query, stop),
            ("PUT", "keypair/agent") => {
                let mut inner = shared.0.lock().unwrap();
                inner.asked.push(ServiceRequest::AgentReport);
                inner.announced.push(serde_json::from_slice(&body).unwrap());
                drop(inner);
                write_response(&mut stream, 200, "")
            }
            ("PUT", result) if result.starts_with("keypair/results/") => {
                let id = result.trim_start_matches("keypair/results/");
                let status = store_result(shared, id, &body);
                write_response(&mut stream, status, "")
            }
            _ => write_response(&mut stream, 404, ""),
        };
        if answered.is_none() {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<(String, String, Vec<u8>)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((method, path, body))
}

fn write_response(stream: &mut TcpStream, status: u16, body: &str) -> Option<()> {
    let length = if status == 204 { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    write!(stream, "HTTP/1.1 {status} X\r\n{length}\r\n{body}").ok()
}

fn answer_poll(
    stream: &mut TcpStream,
    (inner, changed): &(Mutex<Inner>, Condvar),
    query: &str,
    stop: &AtomicBool,
) -> Option<()> {
    let wait: u64 = query.trim_start_matches("wait=").parse().unwrap_or(0);
    let end = Instant::now() + Duration::from_secs(wait);
    let mut guard = inner.lock().unwrap();
    guard.polls.push(Instant::now());
    guard.asked.push(ServiceRequest::Poll(wait));
    loop {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        match guard.fault.clone() {
            None => {}
            Some(PollFault::Raw(bytes)) => {
                drop(guard);
                let _ = stream.write_all(&bytes);
                return None;
            }
            Some(fault) => {
                drop(guard);
                let mut head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n".iter();
                while !stop.load(Ordering::Relaxed) {
                    if fault == PollFault::Drip
                        && let Some(byte) = head.next()
                        && stream.write_all(&[*byte]).is_err()
                    {
                        return None;
                    }
                    std::thread::sleep(Duration::from_secs(1));
                }
                return None;
            }
        }
        if let Some(command) = guard.commands.front() {
            let body = command.to_string();
            drop(guard);
            return write_response(stream, 200, &body);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            drop(guard);
            return write_response(stream, 204, "");
        }
        guard = changed.wait_timeout(guard, left).unwrap().0;
    }
}

fn store_result((inner, changed): &(Mutex<Inner>, Condvar), id: &str, body: &[u8]) -> u16 {
    let mut inner = inner.lock().unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    inner.attempts.push((id.to_owned(), text.clone()));
    inner.asked.push(ServiceRequest::Result(id.to_owned()));
    if inner.refuse_results {
        return 503;
    }
    if let Some(status) = inner.result_status {
        return status;
    }
    if inner.result_limit.is_some_and(|limit| body.len() > limit) {
        return 413;
    }
    if let Some((_, stored)) = inner.results.iter().find(|(stored, _)| stored == id) {
        return if *stored == text { 200 } else { 409 };
    }
    inner.results.push((id.to_owned(), text));
    if !inner.keep_commands {
        inner.commands.retain(|command| command_id_of(command) != id);
    }
    changed.notify_all();
    200
}
