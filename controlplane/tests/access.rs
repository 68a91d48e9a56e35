//! Signed requests: who is let in, and who is not. The platform's own SDK is tried in `make test-clients`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use hmac::{Hmac, Mac};
use serde_json::json;
use sha2::{Digest, Sha256};
use support::{REGION, Response, Server, exchange, file, folder, key};
use time::{Duration, OffsetDateTime};

const SECRET: &str = "hidden";

fn server(store: &str) -> Server {
    let keys = file(&format!("[[access_key]]\nid = 'AK'\nsecret = '{SECRET}'\n"));
    Server::start(&["--instance", "i-1", "--attach-wait", "0", "--store", store, "--access-keys", &keys])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request, and what its signer may get wrong.
struct Signed<'a> {
    method: &'a str,
    path: &'a str,
    body: String,
    access_key: &'a str,
    secret: &'a str,
    /// How far the signer's clock is off.
    off: Duration,
}

impl<'a> Signed<'a> {
    fn of(method: &'a str, path: &'a str, body: impl Into<String>) -> Self {
        Self { method, path, body: body.into(), access_key: "AK", secret: SECRET, off: Duration::ZERO }
    }

    /// The headers that sign it, as the platform's newer signers do.
    fn headers(&self, host: &str) -> String {
        let now = OffsetDateTime::now_utc() + self.off;
        let (day, time) = (now.date(), now.time());
        let date = format!("{}{:02}{:02}", day.year(), u8::from(day.month()), day.day());
        let instant = format!("{date}T{:02}{:02}{:02}Z", time.hour(), time.minute(), time.second());
        let path = format!("{REGION}/{}", self.path).replace(':', "%3A");
        let body = hex(&Sha256::digest(&self.body));
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
        let digest = hex(&Sha256::digest(canonical));
        let signature = hex(&mac(&key, &format!("JDCLOUD3-HMAC-SHA256\n{instant}\n{scope}\n{digest}")));
        format!(
            "x-jdcloud-date: {instant}\r\nAuthorization: JDCLOUD3-HMAC-SHA256 Credential={}/{scope}, \
             SignedHeaders=host;x-jdcloud-date, Signature={signature}\r\n",
            self.access_key
        )
    }

    fn send(&self, server: &Server) -> Response {
        self.send_with(server, &self.headers(&server.api))
    }

    fn send_with(&self, server: &Server, headers: &str) -> Response {
        exchange(&server.api, self.method, &format!("{REGION}/{}", self.path), headers, &self.body).unwrap()
    }
}

fn import() -> Signed<'static> {
    Signed::of("POST", "keypairs:import", json!({ "keyName": "k", "publicKey": key(1) }).to_string())
}

fn assert_refused(response: &Response, why: &str) {
    let error = &response.json()["error"];
    assert_eq!((response.status, &error["status"]), (401, &json!("ACCESS_ERROR")), "{error}");
    assert!(error["message"].as_str().unwrap().contains(why), "{error}");
}

/// KP-9.9.
#[test]
fn who_holds_a_key_is_let_in() {
    let server = server("memory:");
    import().send(&server).result();
    let body = json!({ "instanceIds": ["i-1"], "passWordAuth": "no" }).to_string();
    Signed::of("POST", "keypairs/k:attach", body).send(&server).assert_bound(&[], &["i-1"]);
    assert_eq!(server.guest("i-1").poll(0)["keyName"], "k");
    for minutes in [-14, 14] {
        let off = Signed { off: Duration::minutes(minutes), ..Signed::of("GET", "keypairs", "") };
        assert_eq!(off.send(&server).result()["totalCount"], 1);
    }
}

/// KP-9.3, KP-9.9.
#[test]
fn and_nobody_else() {
    let server = server("memory:");
    let lack = "lack of header authorization[gw]";
    for (method, path) in
        [("GET", "/keypairs"), ("POST", "/keypairs:import"), ("GET", "/nowhere"), ("PUT", "")]
    {
        server.call(method, &format!("{REGION}{path}"), "").assert_error(401, "ACCESS_ERROR", lack);
    }
    let genuine = import();
    assert_refused(&Signed { secret: "another", ..import() }.send(&server), "does not match");
    assert_refused(&Signed { access_key: "nobody", ..import() }.send(&server), "does not match");
    assert_refused(&Signed { access_key: "nobody", secret: "", ..import() }.send(&server), "does not match");
    for minutes in [-16, 16] {
        assert_refused(&Signed { off: Duration::minutes(minutes), ..import() }.send(&server), "15 minutes");
    }
    // Signed, but not this.
    let headers = genuine.headers(&server.api);
    let other = json!({ "keyName": "k", "publicKey": key(2) }).to_string();
    assert_refused(&Signed { body: other, ..import() }.send_with(&server, &headers), "does not match");
    assert_refused(&Signed { method: "PUT", ..import() }.send_with(&server, &headers), "does not match");
    assert_refused(&Signed { path: "keypairs", ..import() }.send_with(&server, &headers), "does not match");
    let undated = headers.split_once("\r\n").unwrap().1;
    assert_refused(&genuine.send_with(&server, undated), "x-jdcloud-date");
    assert_refused(&genuine.send_with(&server, "Authorization: Basic QUs6aGlkZGVu\r\n"), "no JDCLOUD2");
    assert_eq!(Signed::of("GET", "keypairs", "").send(&server).result()["totalCount"], 0);
    let (_, log) = server.end("TERM");
    assert!(!log.contains(SECRET), "{log}");
}

/// KP-9.9.
#[test]
fn a_signature_is_good_once_and_a_restart_does_not_forget_it() {
    let store = format!("sqlite:{}", folder("access").join("store.db").display());
    let first = server(&store);
    let (request, headers) = (import(), import().headers(&first.api));
    request.send_with(&first, &headers).result();
    assert_refused(&request.send_with(&first, &headers), "used before");
    let (host, _) = (first.api.clone(), first.end("KILL"));
    let second = server(&store);
    // Its port is another one, and the host is signed: what is sent names the first one's.
    let again = support::try_send(
        &second.api,
        &host,
        request.method,
        &format!("{REGION}/{}", request.path),
        &headers,
        &request.body,
    );
    assert_refused(&support::received(again.unwrap()).unwrap(), "used before");
}

#[test]
fn the_guests_side_needs_no_signature() {
    let server = server("memory:");
    assert_eq!(server.guest("i-1").get("/instance-id").json(), "i-1");
}
