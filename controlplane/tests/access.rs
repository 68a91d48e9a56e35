//! Signed requests: which of them are accepted and which are refused. The platform's own SDK is tested by `make
//! test-clients`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use hmac::{Hmac, Mac};
use serde_json::json;
use sha2::{Digest, Sha256};
use support::{
    REGION, Response, Server, create_temp_dir, http_with_headers, public_key_line, write_temp_file,
};
use time::{Duration, OffsetDateTime};

const SECRET: &str = "hidden";

fn start_server(store: &str) -> Server {
    let keys = write_temp_file(&format!("[[access_key]]\nid = 'AK'\nsecret = '{SECRET}'\n"));
    Server::start(&["--instance", "i-1", "--attach-wait", "0", "--store", store, "--access-keys", &keys])
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request to sign. Some fields let a test sign it wrongly.
struct SignedCall<'a> {
    method: &'a str,
    path: &'a str,
    body: String,
    access_key: &'a str,
    secret: &'a str,
    /// The error of the signer's clock.
    off: Duration,
}

impl<'a> SignedCall<'a> {
    fn new(method: &'a str, path: &'a str, body: impl Into<String>) -> Self {
        Self { method, path, body: body.into(), access_key: "AK", secret: SECRET, off: Duration::ZERO }
    }

    /// The headers of the signature, as in the platform's newer scheme.
    fn signed_headers(&self, host: &str) -> String {
        let now = OffsetDateTime::now_utc() + self.off;
        let (day, time) = (now.date(), now.time());
        let date = format!("{}{:02}{:02}", day.year(), u8::from(day.month()), day.day());
        let instant = format!("{date}T{:02}{:02}{:02}Z", time.hour(), time.minute(), time.second());
        let path = format!("{REGION}/{}", self.path).replace(':', "%3A");
        let body = to_hex(&Sha256::digest(&self.body));
        let canonical = format!(
            "{}\n{path}\n\nhost:{host}\nx-jdcloud-date:{instant}\n\nhost;x-jdcloud-date\n{body}",
            self.method
        );
        let scope = format!("{date}/cn-north-1/vm/jdcloud3_request");
        let mac = |key: &[u8], text: &str| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
            mac.update(text.as_bytes());
            mac.finalize().into_bytes().to_vec()
        };
        let key = scope
            .split('/')
            .fold(format!("JDCLOUD3{}", self.secret).into_bytes(), |key, part| mac(&key, part));
        let digest = to_hex(&Sha256::digest(canonical));
        let signature = to_hex(&mac(&key, &format!("JDCLOUD3-HMAC-SHA256\n{instant}\n{scope}\n{digest}")));
        format!(
            "x-jdcloud-date: {instant}\r\nAuthorization: JDCLOUD3-HMAC-SHA256 Credential={}/{scope}, \
             SignedHeaders=host;x-jdcloud-date, Signature={signature}\r\n",
            self.access_key
        )
    }

    fn send(&self, server: &Server) -> Response {
        self.send_with(server, &self.signed_headers(&server.api))
    }

    fn send_with(&self, server: &Server, headers: &str) -> Response {
        http_with_headers(&server.api, self.method, &format!("{REGION}/{}", self.path), headers, &self.body)
            .unwrap()
    }
}

fn import_call() -> SignedCall<'static> {
    SignedCall::new(
        "POST",
        "keypairs:import",
        json!({ "keyName": "k", "publicKey": public_key_line(1) }).to_string(),
    )
}

fn assert_access_error(response: &Response, why: &str) {
    let error = &response.json()["error"];
    assert_eq!((response.status, &error["status"]), (401, &json!("ACCESS_ERROR")), "{error}");
    assert!(error["message"].as_str().unwrap().contains(why), "{error}");
}

/// KP-9.9.
#[test]
fn signed_request_with_known_key_is_accepted() {
    let server = start_server("memory:");
    import_call().send(&server).result();
    let body = json!({ "instanceIds": ["i-1"], "passWordAuth": "no" }).to_string();
    SignedCall::new("POST", "keypairs/k:attach", body).send(&server).assert_bound(&[], &["i-1"]);
    assert_eq!(server.guest("i-1").poll(0)["keyName"], "k");
    for minutes in [-14, 14] {
        let off = SignedCall { off: Duration::minutes(minutes), ..SignedCall::new("GET", "keypairs", "") };
        assert_eq!(off.send(&server).result()["totalCount"], 1);
    }
}

/// KP-9.3, KP-9.9.
#[test]
fn unsigned_or_mismatched_request_is_refused() {
    let server = start_server("memory:");
    let lack = "lack of header authorization[gw]";
    for (method, path) in
        [("GET", "/keypairs"), ("POST", "/keypairs:import"), ("GET", "/nowhere"), ("PUT", "")]
    {
        server.call_api(method, &format!("{REGION}{path}"), "").assert_error(401, "ACCESS_ERROR", lack);
    }
    let genuine = import_call();
    assert_access_error(&SignedCall { secret: "another", ..import_call() }.send(&server), "does not match");
    assert_access_error(
        &SignedCall { access_key: "nobody", ..import_call() }.send(&server),
        "does not match",
    );
    assert_access_error(
        &SignedCall { access_key: "nobody", secret: "", ..import_call() }.send(&server),
        "does not match",
    );
    for minutes in [-16, 16] {
        assert_access_error(
            &SignedCall { off: Duration::minutes(minutes), ..import_call() }.send(&server),
            "15 minutes",
        );
    }
    // The headers are correct for the import call, but each of these requests differs from it.
    let headers = genuine.signed_headers(&server.api);
    let other = json!({ "keyName": "k", "publicKey": public_key_line(2) }).to_string();
    assert_access_error(
        &SignedCall { body: other, ..import_call() }.send_with(&server, &headers),
        "does not match",
    );
    assert_access_error(
        &SignedCall { method: "PUT", ..import_call() }.send_with(&server, &headers),
        "does not match",
    );
    assert_access_error(
        &SignedCall { path: "keypairs", ..import_call() }.send_with(&server, &headers),
        "does not match",
    );
    let undated = headers.split_once("\r\n").unwrap().1;
    assert_access_error(&genuine.send_with(&server, undated), "x-jdcloud-date");
    assert_access_error(&genuine.send_with(&server, "Authorization: Basic QUs6aGlkZGVu\r\n"), "no JDCLOUD2");
    assert_eq!(SignedCall::new("GET", "keypairs", "").send(&server).result()["totalCount"], 0);
    let (_, log) = server.stop_with_signal("TERM");
    assert!(!log.contains(SECRET), "{log}");
}

/// KP-9.9.
#[test]
fn signature_replay_is_refused_even_after_restart() {
    let store = format!("sqlite:{}", create_temp_dir("access").join("store.db").display());
    let first = start_server(&store);
    let (request, headers) = (import_call(), import_call().signed_headers(&first.api));
    request.send_with(&first, &headers).result();
    assert_access_error(&request.send_with(&first, &headers), "used before");
    let (host, _) = (first.api.clone(), first.stop_with_signal("KILL"));
    let second = start_server(&store);
    // The second server has another port. The Host header is signed, so the repeated request names the first server.
    let again = support::try_send_request(
        &second.api,
        &host,
        request.method,
        &format!("{REGION}/{}", request.path),
        &headers,
        &request.body,
    );
    assert_access_error(&support::read_response(again.unwrap()).unwrap(), "used before");
}

#[test]
fn metadata_service_needs_no_signature() {
    let server = start_server("memory:");
    assert_eq!(server.guest("i-1").get("/instance-id").json(), "i-1");
}
