//! A separate control plane for each test, and clients for its API and its metadata service.
#![allow(dead_code)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use base64ct::{Base64, Encoding};
use serde_json::{Value, json};

pub(crate) mod postgres;
pub(crate) mod text_format;

/// The longest time for a call before the test fails. It is not used for measurements.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The path of the region in which instances are by default.
pub(crate) const REGION: &str = "/v1/regions/cn-north-1";

/// A command that runs the binary under test.
pub(crate) fn controlplane_command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_keypair-controlplane"))
}

/// Writes a file with a unique name into the tests' temporary directory, and returns its path.
pub(crate) fn write_temp_file(content: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = format!("{}/{}-{number}.toml", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    std::fs::write(&path, content).unwrap();
    path
}

/// Creates an empty directory that no other test uses.
pub(crate) fn create_temp_dir(name: &str) -> PathBuf {
    let path = PathBuf::from(format!("{}/{name}-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Public key number `number`, as an OpenSSH line.
pub(crate) fn public_key_line(number: u8) -> String {
    let blob = [&[0, 0, 0, 11][..], b"ssh-ed25519", &[0, 0, 0, 32], &[number; 32]].concat();
    format!("ssh-ed25519 {} owner@laptop", Base64::encode_string(&blob))
}

/// The log of a control plane so far, and a condition variable that signals new lines.
type Log = Arc<(Mutex<String>, Condvar)>;

/// A running control plane. It is killed at the end of its test.
pub(crate) struct Server {
    child: Child,
    log: Log,
    logging: Option<JoinHandle<()>>,
    /// `host:port` of the API.
    pub(crate) api: String,
    /// The base URLs by instance id, from the first line of output.
    pub(crate) bases: Value,
}

impl Server {
    /// Starts a server with free ports and these additional flags.
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::start_on("127.0.0.1:0", "127.0.0.1:0", flags)
    }

    /// Starts a server on these addresses, with these additional flags.
    pub(crate) fn start_on(api: &str, metadata: &str, flags: &[&str]) -> Self {
        let mut child = controlplane_command()
            .args(["serve", "--api", api, "--metadata", metadata])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Log::default();
        let (lines, written) = (BufReader::new(child.stderr.take().unwrap()).lines(), log.clone());
        let logging = std::thread::spawn(move || {
            for line in lines {
                let (text, more) = &*written;
                *text.lock().unwrap() += &format!("{}\n", line.unwrap());
                more.notify_all();
            }
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            let status = child.wait().unwrap();
            logging.join().unwrap();
            panic!("{status}: {}", log.0.lock().unwrap());
        }
        let first: Value = serde_json::from_str(&line).unwrap();
        let api = first["api"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
        Self { child, log, logging: Some(logging), api, bases: first["metadata"].clone() }
    }

    /// Sends a signal, waits for the end of the process, and returns the exit status and the log.
    pub(crate) fn stop_with_signal(mut self, signal: &str) -> (ExitStatus, String) {
        self.send_signal(signal);
        let status = self.child.wait().unwrap();
        self.logging.take().unwrap().join().unwrap();
        let log = self.log.0.lock().unwrap().clone();
        (status, log)
    }

    /// Waits until the log contains this text.
    pub(crate) fn wait_for_log(&self, expected: &str) {
        let (text, more) = &*self.log;
        let missing = |text: &mut String| !text.contains(expected);
        let (text, waited) = more.wait_timeout_while(text.lock().unwrap(), CALL_TIMEOUT, missing).unwrap();
        assert!(!waited.timed_out(), "{expected} is not in:\n{text}");
    }

    /// Sends a signal to the server process only.
    pub(crate) fn send_signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Calls the API. The content type is that of `curl -d`, although the body is JSON.
    pub(crate) fn call_api(&self, method: &str, path: &str, body: &str) -> Response {
        http(&self.api, method, path, body)
    }

    /// Imports key number `number` under `name` into the default region.
    pub(crate) fn import(&self, name: &str, number: u8) -> Response {
        let body = json!({ "keyName": name, "publicKey": public_key_line(number) });
        self.call_api("POST", &format!("{REGION}/keypairs:import"), &body.to_string())
    }

    /// Attaches a key pair.
    pub(crate) fn attach(&self, name: &str, instances: &[&str], password_auth: &str) -> Response {
        let body = json!({ "instanceIds": instances, "passWordAuth": password_auth });
        self.call_api("POST", &format!("{REGION}/keypairs/{name}:attach"), &body.to_string())
    }

    /// Detaches a key pair.
    pub(crate) fn detach(&self, name: &str, instances: &[&str]) -> Response {
        let body = json!({ "instanceIds": instances });
        self.call_api("POST", &format!("{REGION}/keypairs/{name}:detach"), &body.to_string())
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `host:port` of the metadata service. The server must have at least one instance.
    pub(crate) fn metadata_address(&self) -> String {
        let base = self.bases.as_object().unwrap().values().next().unwrap().as_str().unwrap();
        base.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned()
    }

    /// The client for the guest of an instance.
    pub(crate) fn guest(&self, instance: &str) -> Guest {
        let base = self.bases[instance].as_str().unwrap().strip_prefix("http://").unwrap();
        let (host, path) = base.split_once('/').unwrap();
        Guest { host: host.to_owned(), base: format!("/{path}"), instance: instance.to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The guest of an instance: a client for the calls of its agent.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) host: String,
    base: String,
    instance: String,
}

impl Guest {
    /// A GET below the base. `path` begins with a slash or is empty.
    pub(crate) fn get(&self, path: &str) -> Response {
        http(&self.host, "GET", &format!("{}{path}", self.base), "")
    }

    /// A PUT below the base.
    pub(crate) fn put(&self, path: &str, body: &str) -> Response {
        http(&self.host, "PUT", &format!("{}{path}", self.base), body)
    }

    /// Polls with a wait of `wait` seconds, and returns the command. The test fails if there is none.
    pub(crate) fn poll(&self, wait: u64) -> Value {
        let response = self.get(&format!("/keypair/command?wait={wait}"));
        assert_eq!(response.status, 200, "{}", response.body);
        response.json()
    }

    /// Sends the result of a command.
    pub(crate) fn put_result(&self, command: &Value, status: &str) -> Response {
        let id = command["commandId"].as_str().unwrap();
        self.put(&format!("/keypair/results/{id}"), &result_json(id, &self.instance, status).to_string())
    }

    /// Answers the next command in a thread, which returns that command.
    pub(crate) fn spawn_answer_next(&self, status: &'static str) -> JoinHandle<Value> {
        let guest = self.clone();
        std::thread::spawn(move || {
            let command = guest.poll(60);
            assert_eq!(guest.put_result(&command, status).status, 204);
            command
        })
    }
}

/// A result with all fields.
pub(crate) fn result_json(id: &str, instance: &str, status: &str) -> Value {
    let failed = status == "failed";
    json!({
        "commandId": id, "instanceId": instance, "action": "attach", "status": status,
        "code": if failed { "FAILED_PRECONDITION" } else { "OK" },
        "reason": if failed { json!("LOCKOUT_GUARD") } else { Value::Null },
        "message": "as it is", "changed": !failed, "keyName": "my-test",
        "fingerprint": { "sha256": "SHA256:x", "md5": "aa:bb" }, "user": "root",
        "authorizedKeysFile": "/root/.ssh/authorized_keys", "passWordAuth": "no",
        "effective": null, "proof": null,
        "warnings": [{ "reason": "NO_WAY_IN", "message": "none", "file": null, "line": null }],
        "componentVersion": "3.0.1042", "agentVersion": "3.1.0",
        "finishedAt": "2026-01-01T00:00:00Z", "durationMs": 3
    })
}

/// An HTTP response.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: String,
}

impl Response {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The `result` in the envelope of a successful response.
    pub(crate) fn result(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()["result"].clone()
    }

    /// The value of a header. `name` is in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// Asserts that the response is a `503` whose `Retry-After` is 1 to 30 seconds.
    pub(crate) fn assert_retry_after(&self) {
        let seconds: u64 = self.header("retry-after").unwrap().parse().unwrap();
        assert!(self.status == 503 && (1..=30).contains(&seconds), "{self:?}");
    }

    /// Asserts the HTTP status, the `status` and the `message` of an error.
    pub(crate) fn assert_error(&self, code: u16, status: &str, message: &str) {
        let envelope = self.json();
        assert_eq!(envelope["error"], json!({ "code": code, "status": status, "message": message }));
        assert_eq!(self.status, code);
        assert!(envelope.get("result").is_none());
        assert_eq!(self.header("x-jdcloud-request-id"), envelope["requestId"].as_str());
    }

    /// Asserts which instances succeeded and which failed in an attach or detach.
    pub(crate) fn assert_bound(&self, succeeded: &[&str], failed: &[&str]) {
        let expected = json!({ "successInstanceId": succeeded, "failInstanceId": failed });
        assert_eq!(self.result(), expected);
    }
}

/// One HTTP exchange on a new connection.
pub(crate) fn http(host: &str, method: &str, path: &str, body: &str) -> Response {
    try_http(host, method, path, body).unwrap()
}

/// One HTTP exchange with a server that may be killed during it.
pub(crate) fn try_http(host: &str, method: &str, path: &str, body: &str) -> io::Result<Response> {
    http_with_headers(host, method, path, "", body)
}

/// Like `try_http`, with additional headers. Each header includes its line end.
pub(crate) fn http_with_headers(
    host: &str,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> io::Result<Response> {
    read_response(try_send_request(host, host, method, path, headers, body)?)
}

/// Reads the response from a connection.
pub(crate) fn read_response(mut stream: TcpStream) -> io::Result<Response> {
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, format!("no response: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(cut)?;
    let (line, headers) = head.split_once("\r\n").unwrap();
    let response = Response {
        status: line.split(' ').nth(1).unwrap().parse().unwrap(),
        headers: headers.replace("\r\n", "\n"),
        body: body.to_owned(),
    };
    let whole =
        response.header("content-length").is_none_or(|length| length == response.body.len().to_string());
    if whole { Ok(response) } else { Err(cut()) }
}

/// Sends a request and returns the connection, from which the response can be read.
pub(crate) fn send_request(host: &str, method: &str, path: &str, body: &str) -> TcpStream {
    try_send_request(host, host, method, path, "", body).unwrap()
}

/// Sends a request with additional headers. The Host header may differ from the address.
pub(crate) fn try_send_request(
    address: &str,
    host: &str,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(CALL_TIMEOUT))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}
