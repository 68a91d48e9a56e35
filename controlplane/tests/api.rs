//! The platform's API, driven over HTTP: envelopes, lists, and the error table word for word.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::{REGION, Server, file, key};

const FLEET: &str = "
[[instance]]
id = 'i-run'
[[instance]]
id = 'i-other'
[[instance]]
id = 'i-stop'
status = 'stopped'
[[instance]]
id = 'i-win'
os_type = 'windows'
status = 'error'
[[instance]]
id = 'i-err'
status = 'error'
[[instance]]
id = 'i-east'
region = 'cn-east-2'
";

/// A fleet of every kind, whose guests are not waited for.
fn fleet() -> Server {
    Server::start(&["--attach-wait", "0", "--instances", &file(FLEET)])
}

/// KP-9.2.
#[test]
fn an_answer_stands_in_an_envelope() {
    let server = fleet();
    let response = server.import("my-test", 1);
    let envelope = response.json();
    assert_eq!(response.header("x-jdcloud-request-id"), envelope["requestId"].as_str());
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_ne!(
        server.call("GET", &format!("{REGION}/keypairs"), "").json()["requestId"],
        envelope["requestId"]
    );
    let result = response.result();
    assert_eq!(result["keyName"], "my-test");
    let fingerprint = result["keyFingerprint"].as_str().unwrap();
    assert_eq!(fingerprint.split(':').filter(|pair| pair.len() == 2).count(), 16);
    assert!(result["createTime"].as_str().unwrap().ends_with('Z'));
}

/// KP-9.2.
#[test]
fn paths_and_methods_that_are_none_stand_in_it_too() {
    let server = fleet();
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/v2/regions/cn-north-1/keypairs"),
        ("POST", "/v1/regions/cn-north-1/keypairs/my-test/!attach"),
        ("POST", "/v1/regions/cn-north-1/keypairs/my-test/:attach"),
        ("POST", "/v1/regions/cn-north-1/keypairs/my-test:rename"),
        ("POST", "/v1/regions/cn-north-1/keypairs/my-test:attach/more"),
    ] {
        server.call(method, path, "{}").assert_error(404, "NOT_FOUND", "no such path here");
    }
    for (method, path, allowed) in [
        ("PUT", "keypairs", "GET,HEAD,POST"),
        ("POST", "keypairs/my-test", "DELETE"),
        ("DELETE", "keypairs/my-test:attach", "POST"),
        ("GET", "keypairs%3Aimport", "POST"),
    ] {
        let response = server.call(method, &format!("{REGION}/{path}"), "");
        response.assert_error(405, "METHOD_NOT_ALLOWED", "this path does not know this method");
        assert_eq!(response.header("allow"), Some(allowed), "{path}");
    }
}

/// KP-9.3, KP-9.4.
#[test]
fn faults_of_an_attach_word_for_word_and_in_order() {
    let server = fleet();
    server.import("my-test", 1).result();
    server.import("held", 2).result();
    server.attach("held", &["i-other"], "no").result();
    // Each row has the faults of all the rows below it, too.
    let rows: [(&str, &[&str], u16, &str, &str); 6] = [
        ("none", &["i-none", "i-win", "i-err", "i-other"], 404, "NOT_FOUND", "Keypair 'none' not found"),
        (
            "my-test",
            &["i-other", "i-err", "i-win", "i-none"],
            404,
            "NOT_FOUND",
            "Instance 'i-none' not found.",
        ),
        ("my-test", &["i-east"], 404, "NOT_FOUND", "Instance 'i-east' not found."),
        (
            "my-test",
            &["i-other", "i-err", "i-win"],
            400,
            "FAILED_PRECONDITION",
            "Windows OS doesn't support attach keypair.",
        ),
        ("my-test", &["i-other", "i-err"], 400, "FAILED_PRECONDITION", "Invalid instance status error"),
        (
            "my-test",
            &["i-run", "i-other"],
            400,
            "FAILED_PRECONDITION",
            "Already attached key pair. instance id i-other",
        ),
    ];
    for (name, instances, code, status, message) in rows {
        server.attach(name, instances, "no").assert_error(code, status, message);
    }
    // What was refused was refused whole.
    assert_eq!(server.guest("i-run").get("/keypair/command").status, 204);
}

/// KP-9.3, KP-9.4.
#[test]
fn faults_of_a_detach_word_for_word_and_in_order() {
    let server = fleet();
    server.import("my-test", 1).result();
    server.import("held", 2).result();
    server.attach("held", &["i-other"], "no").result();
    let rows: [(&str, &[&str], u16, &str, &str); 5] = [
        ("none", &["i-none", "i-win"], 404, "NOT_FOUND", "Keypair 'none' not found"),
        (
            "my-test",
            &["i-other", "i-err", "i-win", "i-none"],
            404,
            "NOT_FOUND",
            "Instance 'i-none' not found.",
        ),
        (
            "my-test",
            &["i-other", "i-err", "i-win"],
            400,
            "FAILED_PRECONDITION",
            "Windows OS doesn't support attach keypair.",
        ),
        ("my-test", &["i-other", "i-err"], 400, "FAILED_PRECONDITION", "Invalid instance status error"),
        (
            "my-test",
            &["i-run", "i-other"],
            400,
            "FAILED_PRECONDITION",
            "Already attached other keypair. instance id i-other",
        ),
    ];
    for (name, instances, code, status, message) in rows {
        server.detach(name, instances).assert_error(code, status, message);
    }
    assert_eq!(server.guest("i-run").get("/keypair/command").status, 204);
}

/// KP-9.3.
#[test]
fn faults_of_import_and_delete_word_for_word() {
    let server = fleet();
    server.import("my-test", 1).result();
    let in_use = "KeyName 'my-test' already in use";
    server.import("my-test", 2).assert_error(400, "FAILED_PRECONDITION", in_use);
    for text in ["ssh-ed25519 AAAA", "nonsense", "", "no-pty ssh-ed25519 AAAA"] {
        let body = json!({ "keyName": "bad", "publicKey": text }).to_string();
        server.call("POST", &format!("{REGION}/keypairs:import"), &body).assert_error(
            400,
            "FAILED_PRECONDITION",
            &format!("Malformed PublicKey {text}"),
        );
    }
    let delete = |name: &str| server.call("DELETE", &format!("{REGION}/keypairs/{name}"), "");
    delete("my-test").result();
    delete("my-test").assert_error(404, "NOT_FOUND", "Keypair 'my-test' not found");
    delete("not%20a%20name").assert_error(404, "NOT_FOUND", "Keypair 'not a name' not found");
    server.import("my-test", 2).result();
}

/// KP-1.1, KP-9.4.
#[test]
fn bad_parameters_are_invalid_arguments() {
    let server = fleet();
    server.import("my-test", 1).result();
    let attach = format!("{REGION}/keypairs/my-test:attach");
    let import = format!("{REGION}/keypairs:import");
    // By one byte, so that it is read to its end.
    let long = format!("{}{}", r#"{"keyName":"a","publicKey":"x"}"#, " ".repeat(1024 * 1024 - 30));
    assert_eq!(long.len(), 1024 * 1024 + 1);
    for (method, path, body) in [
        ("POST", attach.as_str(), ""),
        ("POST", &attach, "[]"),
        ("POST", &attach, r#"{"passWordAuth":"no"}"#),
        ("POST", &attach, r#"{"instanceIds":[],"passWordAuth":"no"}"#),
        ("POST", &attach, r#"{"instanceIds":"i-run","passWordAuth":"no"}"#),
        ("POST", &attach, r#"{"instanceIds":[1],"passWordAuth":"no"}"#),
        ("POST", &attach, r#"{"instanceIds":["i-run"]}"#),
        ("POST", &attach, r#"{"instanceIds":["i-run"],"passWordAuth":"maybe"}"#),
        ("POST", &attach, r#"{"instanceIds":["i-run"],"passWordAuth":"no","passwordAuth":"yes"}"#),
        ("POST", &import, r#"{"keyName":"a b","publicKey":"x"}"#),
        ("POST", &import, r#"{"keyName":"a"}"#),
        ("POST", &import, r#"{"publicKey":"a"}"#),
        ("POST", &import, &long),
        ("GET", "/v1/regions/cn_north/keypairs", ""),
        ("GET", "/v1/regions/cn-north-1/keypairs?pageSize=9", ""),
        ("GET", "/v1/regions/cn-north-1/keypairs?pageSize=101", ""),
        ("GET", "/v1/regions/cn-north-1/keypairs?pageNumber=0", ""),
        ("GET", "/v1/regions/cn-north-1/keypairs?filters.1.name=colour&filters.1.values.1=red", ""),
    ] {
        let response = server.call(method, path, body);
        let error = &response.json()["error"];
        assert_eq!((response.status, &error["status"]), (400, &json!("INVALID_ARGUMENT")), "{path} {body}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    assert_eq!(server.guest("i-run").get("/keypair/command").status, 204);
}

/// KP-3.23.
#[test]
fn both_spellings_and_all_words_of_the_password_setting() {
    let server = fleet();
    server.import("my-test", 1).result();
    let guest = server.guest("i-run");
    for (setting, meant) in [
        (r#""passWordAuth":"yes""#, "yes"),
        (r#""passwordAuth":"no""#, "no"),
        (r#""passWordAuth":"True""#, "yes"),
        (r#""passwordAuth":"FALSE""#, "no"),
        (r#""passWordAuth":true"#, "yes"),
        (r#""passwordAuth":false,"passWordAuth":"No""#, "no"),
    ] {
        // What real clients send besides is no fault.
        let body = format!(
            r#"{{"regionId":"cn-north-1","keyName":"my-test","instanceIds":["i-run","i-run"],{setting}}}"#
        );
        server.call("POST", &format!("{REGION}/keypairs/my-test:attach"), &body).result();
        let attach = guest.poll(0);
        assert_eq!((&attach["action"], &attach["passWordAuth"]), (&json!("attach"), &json!(meant)));
        guest.answer(&attach, "succeeded");
        server.detach("my-test", &["i-run"]).result();
        guest.answer(&guest.poll(0), "succeeded");
    }
}

#[test]
fn lists_have_pages_filters_and_the_instances_of_each() {
    let server = fleet();
    for number in 0..25 {
        server.import(&format!("key-{number:02}"), number).result();
    }
    server.attach("key-03", &["i-run", "i-stop"], "yes").result();
    let list = |query: &str| server.call("GET", &format!("{REGION}/keypairs{query}"), "").result();
    let names = |result: &Value| -> Vec<String> {
        let listed = result["keypairs"].as_array().unwrap();
        listed.iter().map(|pair| pair["keyName"].as_str().unwrap().to_owned()).collect()
    };
    let first = list("");
    assert_eq!((first["totalCount"].as_u64(), names(&first).len()), (Some(25), 20));
    assert_eq!(names(&list("?pageNumber=3&pageSize=10")), ["key-20", "key-21", "key-22", "key-23", "key-24"]);
    assert!(names(&list("?pageNumber=99999999999&pageSize=100")).is_empty());
    let some = "?filters.1.name=keyNames&filters.1.values.1=key-03&filters.1.values.2=key-04";
    let filtered = list(some);
    assert_eq!(filtered["totalCount"], 2);
    assert_eq!(filtered["keypairs"][0]["instanceIds"], json!(["i-run", "i-stop"]));
    assert_eq!(filtered["keypairs"][1]["instanceIds"], json!([]));
    assert!(filtered["keypairs"][0]["keyFingerprint"].is_string());
    assert!(filtered["keypairs"][0]["createTime"].is_string());
    let east = server.call("GET", "/v1/regions/cn-east-2/keypairs", "").result();
    assert_eq!(east, json!({ "keypairs": [], "totalCount": 0 }));
}

#[test]
fn a_region_is_a_world_of_its_own() {
    let server = fleet();
    server.import("my-test", 1).result();
    let east = "/v1/regions/cn-east-2/keypairs";
    let body = json!({ "instanceIds": ["i-east"], "passWordAuth": "no" }).to_string();
    let attach = || server.call("POST", &format!("{east}/my-test:attach"), &body);
    attach().assert_error(404, "NOT_FOUND", "Keypair 'my-test' not found");
    let import = json!({ "keyName": "my-test", "publicKey": key(2) }).to_string();
    server.call("POST", &format!("{east}:import"), &import).result();
    attach().result();
    assert_eq!(server.guest("i-east").poll(0)["publicKey"], json!(key(2)));
}

/// KP-9.6.
#[test]
fn success_is_what_the_guests_say() {
    let server = Server::start(&["--attach-wait", "60", "--instance", "i-1", "--instance", "i-2"]);
    server.import("my-test", 1).result();
    let good = server.guest("i-1").answer_next("succeeded");
    let bad = server.guest("i-2").answer_next("failed");
    server.attach("my-test", &["i-2", "i-1"], "no").assert_bound(&["i-1"], &["i-2"]);
    assert_eq!(good.join().unwrap()["instanceId"], "i-1");
    assert_eq!(bad.join().unwrap()["instanceId"], "i-2");
    // The failed one is free again, the other is not.
    let message = "Already attached key pair. instance id i-1";
    server.attach("my-test", &["i-1", "i-2"], "no").assert_error(400, "FAILED_PRECONDITION", message);
    let again = server.guest("i-2").answer_next("succeeded");
    server.attach("my-test", &["i-2"], "no").assert_bound(&["i-2"], &[]);
    again.join().unwrap();
    // A detach that fails leaves it bound.
    let bad = server.guest("i-1").answer_next("failed");
    server.detach("my-test", &["i-1"]).assert_bound(&[], &["i-1"]);
    bad.join().unwrap();
    server.attach("my-test", &["i-1"], "no").assert_error(400, "FAILED_PRECONDITION", message);
    let good = server.guest("i-1").answer_next("succeeded");
    server.detach("my-test", &["i-1"]).assert_bound(&["i-1"], &[]);
    let detach = good.join().unwrap();
    assert_eq!((&detach["action"], &detach["keyName"]), (&json!("detach"), &json!("my-test")));
    assert!(detach.get("publicKey").is_none() && detach.get("passWordAuth").is_none());
}

#[test]
fn one_attach_may_name_ten_thousand_instances() {
    let ids: Vec<String> = (0..10_000).map(|number| format!("i-{number:012}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let fleet: String = ids.iter().map(|id| format!("[[instance]]\nid = '{id}'\n")).collect();
    let server = Server::start(&["--attach-wait", "0", "--instances", &file(&fleet)]);
    server.import("my-test", 1).result();
    server.attach("my-test", &ids, "no").assert_bound(&[], &ids);
    assert_eq!(server.guest(ids[9_999]).poll(0)["keyName"], "my-test");
}

/// KP-9.5, KP-9.6.
#[test]
fn a_silent_guest_fails_and_its_command_stays_queued() {
    let server = fleet();
    server.import("my-test", 1).result();
    server.attach("my-test", &["i-run"], "no").assert_bound(&[], &["i-run"]);
    let guest = server.guest("i-run");
    let command = guest.poll(0);
    // The same attach again is the queued command; another one is refused.
    server.attach("my-test", &["i-run"], "no").assert_bound(&[], &["i-run"]);
    assert_eq!(guest.poll(0), command);
    let message = "Already attached key pair. instance id i-run";
    server.attach("my-test", &["i-run"], "yes").assert_error(400, "FAILED_PRECONDITION", message);
    // A late result is stored.
    assert_eq!(guest.answer(&command, "succeeded").status, 204);
    assert_eq!(guest.get("/keypair/command").status, 204);
    server.attach("my-test", &["i-run"], "no").assert_error(400, "FAILED_PRECONDITION", message);
}

#[test]
fn the_same_attach_again_waits_for_the_queued_command() {
    let server = Server::start(&["--attach-wait", "60", "--instance", "i-1"]);
    server.import("my-test", 1).result();
    let guest = server.guest("i-1");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.attach("my-test", &["i-1"], "no"));
        let command = guest.poll(60);
        let second = scope.spawn(|| server.attach("my-test", &["i-1"], "no"));
        server.await_log("asked for again");
        guest.answer(&command, "succeeded");
        first.join().unwrap().assert_bound(&["i-1"], &[]);
        second.join().unwrap().assert_bound(&["i-1"], &[]);
    });
    assert_eq!(guest.get("/keypair/command").status, 204);
}

/// KP-9.6.
#[test]
fn a_stopped_instance_accepts_at_once_and_is_told_at_boot() {
    let server = Server::start(&["--attach-wait", "300", "--instances", &file(FLEET)]);
    server.import("my-test", 1).result();
    server.attach("my-test", &["i-stop"], "no").assert_bound(&["i-stop"], &[]);
    let guest = server.guest("i-stop");
    let command = guest.poll(0);
    assert_eq!(command["keyName"], "my-test");
    assert_eq!(guest.answer(&command, "succeeded").status, 204);
    server.detach("my-test", &["i-stop"]).assert_bound(&["i-stop"], &[]);
    assert_eq!(guest.poll(0)["action"], "detach");
}

#[test]
fn a_detach_of_nothing_is_asked_of_the_guest() {
    let server = fleet();
    server.import("my-test", 1).result();
    server.detach("my-test", &["i-run"]).assert_bound(&[], &["i-run"]);
    let guest = server.guest("i-run");
    let detach = guest.poll(0);
    server.detach("my-test", &["i-run"]).assert_bound(&[], &["i-run"]);
    assert_eq!(guest.poll(0), detach);
    guest.answer(&detach, "succeeded");
    assert_eq!(guest.get("/keypair/command").status, 204);
}

/// KP-9.7.
#[test]
fn a_deleted_key_pair_gives_way() {
    let server = fleet();
    let guest = server.guest("i-run");
    server.import("old", 1).result();
    server.import("new", 2).result();
    server.attach("old", &["i-run"], "no").result();
    let first = guest.poll(0);
    assert_eq!(first["replace"], false);
    guest.answer(&first, "succeeded");
    server.call("DELETE", &format!("{REGION}/keypairs/old"), "").result();
    // It goes on working in the guest until another one is bound.
    assert_eq!(guest.get("/attributes/ssh-keys").status, 200);
    server.attach("new", &["i-run"], "no").result();
    let second = guest.poll(0);
    assert_eq!((&second["keyName"], &second["replace"]), (&json!("new"), &json!(true)));
    guest.answer(&second, "succeeded");
    // A namesake with another key is another key pair.
    server.call("DELETE", &format!("{REGION}/keypairs/new"), "").result();
    server.import("new", 3).result();
    server.attach("new", &["i-run"], "no").result();
    let third = guest.poll(0);
    assert_eq!((&third["publicKey"], &third["replace"]), (&json!(key(3)), &json!(true)));
}

/// KP-3.34.
#[test]
fn key_text_is_never_logged() {
    let server = fleet();
    server.import("my-test", 1).result();
    let body = json!({ "keyName": "bad", "publicKey": format!("no-pty {}", key(9)) }).to_string();
    server.call("POST", &format!("{REGION}/keypairs:import"), &body);
    server.attach("my-test", &["i-run"], "no").result();
    server.guest("i-run").answer(&server.guest("i-run").poll(0), "failed");
    let (status, log) = server.end("TERM");
    assert!(status.success());
    for text in ["SHA256:", "silent", "LOCKOUT_GUARD", "i-run", "Malformed PublicKey"] {
        assert!(log.contains(text), "{text} is not in:\n{log}");
    }
    assert!(!log.contains("AAAA"), "{log}");
}
