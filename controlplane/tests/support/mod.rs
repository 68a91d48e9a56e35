//! A control plane of its own for each test, and a client for both its faces.
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

/// How long a call may take before the test fails; nothing is measured with it.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The region of every instance that is not said to be elsewhere.
pub(crate) const REGION: &str = "/v1/regions/cn-north-1";

/// The binary under test.
pub(crate) fn controlplane_command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_keypair-controlplane"))
}

/// A file in the tests' own directory that no other test has.
pub(crate) fn write_temp_file(content: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = format!("{}/{}-{number}.toml", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    std::fs::write(&path, content).unwrap();
    path
}

/// A folder that no other test has, empty.
pub(crate) fn create_temp_dir(name: &str) -> PathBuf {
    let path = PathBuf::from(format!("{}/{name}-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// The public key number `number`, as an OpenSSH line.
pub(crate) fn public_key_line(number: u8) -> String {
    let blob = [&[0, 0, 0, 11][..], b"ssh-ed25519", &[0, 0, 0, 32], &[number; 32]].concat();
    format!("ssh-ed25519 {} owner@laptop", Base64::encode_string(&blob))
}

/// What a control plane logged so far, and the word that there is more.
type Log = Arc<(Mutex<String>, Condvar)>;

/// A running control plane, killed at the end of its test.
pub(crate) struct Server {
    child: Child,
    log: Log,
    logging: Option<JoinHandle<()>>,
    /// `host:port` of the API.
    pub(crate) api: String,
    /// The bases by instance, as the first line gives them.
    pub(crate) bases: Value,
}

impl Server {
    /// Starts it with free ports and these flags besides.
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::start_on("127.0.0.1:0", "127.0.0.1:0", flags)
    }

    /// Starts it with its faces there and these flags besides.
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

    /// Sends a signal, waits for the end, and gives the exit status and the log.
    pub(crate) fn stop_with_signal(mut self, signal: &str) -> (ExitStatus, String) {
        self.send_signal(signal);
        let status = self.child.wait().unwrap();
        self.logging.take().unwrap().join().unwrap();
        let log = self.log.0.lock().unwrap().clone();
        (status, log)
    }

    /// Waits until the log holds this text.
    pub(crate) fn wait_for_log(&self, expected: &str) {
        let (text, more) = &*self.log;
        let missing = |text: &mut String| !text.contains(expected);
        let (text, waited) = more.wait_timeout_while(text.lock().unwrap(), CALL_TIMEOUT, missing).unwrap();
        assert!(!waited.timed_out(), "{expected} is not in:\n{text}");
    }

    /// Sends a signal to this process alone.
    pub(crate) fn send_signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// A call of the API with a JSON body, as curl -d would send it.
    pub(crate) fn call_api(&self, method: &str, path: &str, body: &str) -> Response {
        http(&self.api, method, path, body)
    }

    /// Imports key number `number` under `name` into the usual region.
    pub(crate) fn import(&self, name: &str, number: u8) -> Response {
        let body = json!({ "keyName": name, "publicKey": public_key_line(number) });
        self.call_api("POST", &format!("{REGION}/keypairs:import"), &body.to_string())
    }

    /// Binds a key pair.
    pub(crate) fn attach(&self, name: &str, instances: &[&str], password_auth: &str) -> Response {
        let body = json!({ "instanceIds": instances, "passWordAuth": password_auth });
        self.call_api("POST", &format!("{REGION}/keypairs/{name}:attach"), &body.to_string())
    }

    /// Unbinds a key pair.
    pub(crate) fn detach(&self, name: &str, instances: &[&str]) -> Response {
        let body = json!({ "instanceIds": instances });
        self.call_api("POST", &format!("{REGION}/keypairs/{name}:detach"), &body.to_string())
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `host:port` of the metadata service; it needs an instance to be told.
    pub(crate) fn metadata_address(&self) -> String {
        let base = self.bases.as_object().unwrap().values().next().unwrap().as_str().unwrap();
        base.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned()
    }

    /// The guest's side of an instance.
    pub(crate) fn guest(&self, instance: &str) -> Guest {
        let base = self.bases[instance].as_str().unwrap().strip_prefix("http://").unwrap();
        let (host, path) = base.split_once('/').unwrap();
        Guest { host: host.to_owned(), base: format!("/{path}"), instance: instance.to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The guest's side of an instance: what its agent would call.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) host: String,
    base: String,
    instance: String,
}

impl Guest {
    /// A GET below the base; `path` begins with a slash or is empty.
    pub(crate) fn get(&self, path: &str) -> Response {
        http(&self.host, "GET", &format!("{}{path}", self.base), "")
    }

    /// A PUT below the base.
    pub(crate) fn put(&self, path: &str, body: &str) -> Response {
        http(&self.host, "PUT", &format!("{}{path}", self.base), body)
    }

    /// The command that a poll of this many seconds gets.
    pub(crate) fn poll(&self, wait: u64) -> Value {
        let response = self.get(&format!("/keypair/command?wait={wait}"));
        assert_eq!(response.status, 200, "{}", response.body);
        response.json()
    }

    /// Answers a command.
    pub(crate) fn put_result(&self, command: &Value, status: &str) -> Response {
        let id = command["commandId"].as_str().unwrap();
        self.put(&format!("/keypair/results/{id}"), &result_json(id, &self.instance, status).to_string())
    }

    /// Answers the next command in a thread, and gives that command.
    pub(crate) fn spawn_answer_next(&self, status: &'static str) -> JoinHandle<Value> {
        let guest = self.clone();
        std::thread::spawn(move || {
            let command = guest.poll(60);
            assert_eq!(guest.put_result(&command, status).status, 204);
            command
        })
    }
}

/// A result with every field.
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

    /// The `result` of a successful envelope.
    pub(crate) fn result(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()["result"].clone()
    }

    /// A header's value; its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// Holds a `503` of the metadata service to the seconds that it may tell an agent to stay away.
    pub(crate) fn assert_retry_after(&self) {
        let seconds: u64 = self.header("retry-after").unwrap().parse().unwrap();
        assert!(self.status == 503 && (1..=30).contains(&seconds), "{self:?}");
    }

    /// Holds an error to its row: HTTP status, status word, message.
    pub(crate) fn assert_error(&self, code: u16, status: &str, message: &str) {
        let envelope = self.json();
        assert_eq!(envelope["error"], json!({ "code": code, "status": status, "message": message }));
        assert_eq!(self.status, code);
        assert!(envelope.get("result").is_none());
        assert_eq!(self.header("x-jdcloud-request-id"), envelope["requestId"].as_str());
    }

    /// Holds an answer to attach or detach to who succeeded and who failed.
    pub(crate) fn assert_bound(&self, succeeded: &[&str], failed: &[&str]) {
        let expected = json!({ "successInstanceId": succeeded, "failInstanceId": failed });
        assert_eq!(self.result(), expected);
    }
}

/// One HTTP exchange on a connection of its own.
pub(crate) fn http(host: &str, method: &str, path: &str, body: &str) -> Response {
    try_http(host, method, path, body).unwrap()
}

/// One HTTP exchange with somebody who may die within it.
pub(crate) fn try_http(host: &str, method: &str, path: &str, body: &str) -> io::Result<Response> {
    http_with_headers(host, method, path, "", body)
}

/// The same with headers of one's own, each with its line end.
pub(crate) fn http_with_headers(
    host: &str,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> io::Result<Response> {
    read_response(try_send_request(host, host, method, path, headers, body)?)
}

/// The response to what was sent.
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

/// Sends a request and leaves the response to be read.
pub(crate) fn send_request(host: &str, method: &str, path: &str, body: &str) -> TcpStream {
    try_send_request(host, host, method, path, "", body).unwrap()
}

/// Sends a request with headers of one's own to somebody who may be called by another name.
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
