//! The platform's API over HTTP: envelopes, lists, and the exact texts of the error table.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::{REGION, Server, public_key_line, write_temp_file};

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

/// A server with instances of every kind. It does not wait for guests.
fn start_fleet_server() -> Server {
    Server::start(&["--attach-wait", "0", "--instances", &write_temp_file(FLEET)])
}

/// KP-9.2.
#[test]
fn response_has_envelope_with_request_id() {
    let server = start_fleet_server();
    let response = server.import("my-test", 1);
    let envelope = response.json();
    assert_eq!(response.header("x-jdcloud-request-id"), envelope["requestId"].as_str());
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_ne!(
        server.call_api("GET", &format!("{REGION}/keypairs"), "").json()["requestId"],
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
fn unknown_path_or_method_error_has_envelope() {
    let server = start_fleet_server();
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/v2/regions/cn-north-1/keypairs"),
        ("POST", "/v1/regions/cn-north-1/keypairs/my-test/!attach"),
        ("POST", "/v1/regions/cn-north-1/keypairs/my-test/:attach"),
        ("POST", "/v1/regions/cn-north-1/keypairs/my-test:rename"),
        ("POST", "/v1/regions/cn-north-1/keypairs/my-test:attach/more"),
    ] {
        server.call_api(method, path, "{}").assert_error(404, "NOT_FOUND", "no such path here");
    }
    for (method, path, allowed) in [
        ("PUT", "keypairs", "GET,HEAD,POST"),
        ("POST", "keypairs/my-test", "DELETE"),
        ("DELETE", "keypairs/my-test:attach", "POST"),
        ("GET", "keypairs%3Aimport", "POST"),
    ] {
        let response = server.call_api(method, &format!("{REGION}/{path}"), "");
        response.assert_error(405, "METHOD_NOT_ALLOWED", "this path does not know this method");
        assert_eq!(response.header("allow"), Some(allowed), "{path}");
    }
}

/// KP-9.3, KP-9.4.
#[test]
fn attach_errors_have_exact_text_and_precedence() {
    let server = start_fleet_server();
    server.import("my-test", 1).result();
    server.import("held", 2).result();
    server.attach("held", &["i-other"], "no").result();
    // Each row also has the faults of all later rows, and the first fault must win.
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
    // A refused request queues nothing for any of its instances.
    assert_eq!(server.guest("i-run").get("/keypair/command").status, 204);
}

/// KP-9.3, KP-9.4.
#[test]
fn detach_errors_have_exact_text_and_precedence() {
    let server = start_fleet_server();
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
fn import_and_delete_errors_have_exact_text() {
    let server = start_fleet_server();
    server.import("my-test", 1).result();
    let in_use = "KeyName 'my-test' already in use";
    server.import("my-test", 2).assert_error(400, "FAILED_PRECONDITION", in_use);
    for text in ["ssh-ed25519 AAAA", "nonsense", "", "no-pty ssh-ed25519 AAAA"] {
        let body = json!({ "keyName": "bad", "publicKey": text }).to_string();
        server.call_api("POST", &format!("{REGION}/keypairs:import"), &body).assert_error(
            400,
            "FAILED_PRECONDITION",
            &format!("Malformed PublicKey {text}"),
        );
    }
    let delete = |name: &str| server.call_api("DELETE", &format!("{REGION}/keypairs/{name}"), "");
    delete("my-test").result();
    delete("my-test").assert_error(404, "NOT_FOUND", "Keypair 'my-test' not found");
    delete("not%20a%20name").assert_error(404, "NOT_FOUND", "Keypair 'not a name' not found");
    server.import("my-test", 2).result();
}

/// KP-1.1, KP-9.4.
#[test]
fn bad_parameters_are_invalid_arguments() {
    let server = start_fleet_server();
    server.import("my-test", 1).result();
    let attach = format!("{REGION}/keypairs/my-test:attach");
    let import = format!("{REGION}/keypairs:import");
    // The body is too long by one byte, so the server reads it up to the limit.
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
        let response = server.call_api(method, path, body);
        let error = &response.json()["error"];
        assert_eq!((response.status, &error["status"]), (400, &json!("INVALID_ARGUMENT")), "{path} {body}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    assert_eq!(server.guest("i-run").get("/keypair/command").status, 204);
}

/// KP-3.23.
#[test]
fn password_auth_spellings_and_values_reach_guest() {
    let server = start_fleet_server();
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
        // Real clients send additional fields and duplicate ids. They are accepted.
        let body = format!(
            r#"{{"regionId":"cn-north-1","keyName":"my-test","instanceIds":["i-run","i-run"],{setting}}}"#
        );
        server.call_api("POST", &format!("{REGION}/keypairs/my-test:attach"), &body).result();
        let attach = guest.poll(0);
        assert_eq!((&attach["action"], &attach["passWordAuth"]), (&json!("attach"), &json!(meant)));
        guest.put_result(&attach, "succeeded");
        server.detach("my-test", &["i-run"]).result();
        guest.put_result(&guest.poll(0), "succeeded");
    }
}

#[test]
fn key_pair_list_supports_pages_and_filters() {
    let server = start_fleet_server();
    for number in 0..25 {
        server.import(&format!("key-{number:02}"), number).result();
    }
    server.attach("key-03", &["i-run", "i-stop"], "yes").result();
    let list = |query: &str| server.call_api("GET", &format!("{REGION}/keypairs{query}"), "").result();
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
    let east = server.call_api("GET", "/v1/regions/cn-east-2/keypairs", "").result();
    assert_eq!(east, json!({ "keypairs": [], "totalCount": 0 }));
}

#[test]
fn key_pairs_of_other_regions_are_not_found() {
    let server = start_fleet_server();
    server.import("my-test", 1).result();
    let east = "/v1/regions/cn-east-2/keypairs";
    let body = json!({ "instanceIds": ["i-east"], "passWordAuth": "no" }).to_string();
    let attach = || server.call_api("POST", &format!("{east}/my-test:attach"), &body);
    attach().assert_error(404, "NOT_FOUND", "Keypair 'my-test' not found");
    let import = json!({ "keyName": "my-test", "publicKey": public_key_line(2) }).to_string();
    server.call_api("POST", &format!("{east}:import"), &import).result();
    attach().result();
    assert_eq!(server.guest("i-east").poll(0)["publicKey"], json!(public_key_line(2)));
}

/// KP-9.6.
#[test]
fn attach_success_follows_guest_results() {
    let server = Server::start(&["--attach-wait", "60", "--instance", "i-1", "--instance", "i-2"]);
    server.import("my-test", 1).result();
    let good = server.guest("i-1").spawn_answer_next("succeeded");
    let bad = server.guest("i-2").spawn_answer_next("failed");
    server.attach("my-test", &["i-2", "i-1"], "no").assert_bound(&["i-1"], &["i-2"]);
    assert_eq!(good.join().unwrap()["instanceId"], "i-1");
    assert_eq!(bad.join().unwrap()["instanceId"], "i-2");
    // The instance with the failed attach is unbound again, the other one is bound.
    let message = "Already attached key pair. instance id i-1";
    server.attach("my-test", &["i-1", "i-2"], "no").assert_error(400, "FAILED_PRECONDITION", message);
    let again = server.guest("i-2").spawn_answer_next("succeeded");
    server.attach("my-test", &["i-2"], "no").assert_bound(&["i-2"], &[]);
    again.join().unwrap();
    // After a failed detach the key pair is still bound.
    let bad = server.guest("i-1").spawn_answer_next("failed");
    server.detach("my-test", &["i-1"]).assert_bound(&[], &["i-1"]);
    bad.join().unwrap();
    server.attach("my-test", &["i-1"], "no").assert_error(400, "FAILED_PRECONDITION", message);
    let good = server.guest("i-1").spawn_answer_next("succeeded");
    server.detach("my-test", &["i-1"]).assert_bound(&["i-1"], &[]);
    let detach = good.join().unwrap();
    assert_eq!((&detach["action"], &detach["keyName"]), (&json!("detach"), &json!("my-test")));
    assert!(detach.get("publicKey").is_none() && detach.get("passWordAuth").is_none());
}

#[test]
fn attach_accepts_ten_thousand_instances() {
    let ids: Vec<String> = (0..10_000).map(|number| format!("i-{number:012}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let fleet: String = ids.iter().map(|id| format!("[[instance]]\nid = '{id}'\n")).collect();
    let server = Server::start(&["--attach-wait", "0", "--instances", &write_temp_file(&fleet)]);
    server.import("my-test", 1).result();
    server.attach("my-test", &ids, "no").assert_bound(&[], &ids);
    assert_eq!(server.guest(ids[9_999]).poll(0)["keyName"], "my-test");
}

/// KP-9.5, KP-9.6.
#[test]
fn attach_unanswered_fails_and_stays_queued() {
    let server = start_fleet_server();
    server.import("my-test", 1).result();
    server.attach("my-test", &["i-run"], "no").assert_bound(&[], &["i-run"]);
    let guest = server.guest("i-run");
    let command = guest.poll(0);
    // The same attach again returns the queued command; a different attach is refused.
    server.attach("my-test", &["i-run"], "no").assert_bound(&[], &["i-run"]);
    assert_eq!(guest.poll(0), command);
    let message = "Already attached key pair. instance id i-run";
    server.attach("my-test", &["i-run"], "yes").assert_error(400, "FAILED_PRECONDITION", message);
    // A late result is stored.
    assert_eq!(guest.put_result(&command, "succeeded").status, 204);
    assert_eq!(guest.get("/keypair/command").status, 204);
    server.attach("my-test", &["i-run"], "no").assert_error(400, "FAILED_PRECONDITION", message);
}

#[test]
fn attach_repeated_waits_for_queued_command() {
    let server = Server::start(&["--attach-wait", "60", "--instance", "i-1"]);
    server.import("my-test", 1).result();
    let guest = server.guest("i-1");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.attach("my-test", &["i-1"], "no"));
        let command = guest.poll(60);
        let second = scope.spawn(|| server.attach("my-test", &["i-1"], "no"));
        server.wait_for_log("asked for again");
        guest.put_result(&command, "succeeded");
        first.join().unwrap().assert_bound(&["i-1"], &[]);
        second.join().unwrap().assert_bound(&["i-1"], &[]);
    });
    assert_eq!(guest.get("/keypair/command").status, 204);
}

/// KP-9.6.
#[test]
fn stopped_instance_succeeds_at_once_and_polls_later() {
    let server = Server::start(&["--attach-wait", "300", "--instances", &write_temp_file(FLEET)]);
    server.import("my-test", 1).result();
    server.attach("my-test", &["i-stop"], "no").assert_bound(&["i-stop"], &[]);
    let guest = server.guest("i-stop");
    let command = guest.poll(0);
    assert_eq!(command["keyName"], "my-test");
    assert_eq!(guest.put_result(&command, "succeeded").status, 204);
    server.detach("my-test", &["i-stop"]).assert_bound(&["i-stop"], &[]);
    assert_eq!(guest.poll(0)["action"], "detach");
}

#[test]
fn detach_with_nothing_bound_reaches_guest() {
    let server = start_fleet_server();
    server.import("my-test", 1).result();
    server.detach("my-test", &["i-run"]).assert_bound(&[], &["i-run"]);
    let guest = server.guest("i-run");
    let detach = guest.poll(0);
    server.detach("my-test", &["i-run"]).assert_bound(&[], &["i-run"]);
    assert_eq!(guest.poll(0), detach);
    guest.put_result(&detach, "succeeded");
    assert_eq!(guest.get("/keypair/command").status, 204);
}

/// KP-9.7.
#[test]
fn deleted_key_pair_is_replaced_by_attach() {
    let server = start_fleet_server();
    let guest = server.guest("i-run");
    server.import("old", 1).result();
    server.import("new", 2).result();
    server.attach("old", &["i-run"], "no").result();
    let first = guest.poll(0);
    assert_eq!(first["replace"], false);
    guest.put_result(&first, "succeeded");
    server.call_api("DELETE", &format!("{REGION}/keypairs/old"), "").result();
    // The deleted key still works in the guest until another one is bound.
    assert_eq!(guest.get("/attributes/ssh-keys").status, 200);
    server.attach("new", &["i-run"], "no").result();
    let second = guest.poll(0);
    assert_eq!((&second["keyName"], &second["replace"]), (&json!("new"), &json!(true)));
    guest.put_result(&second, "succeeded");
    // A new key pair with the same name is a different key pair.
    server.call_api("DELETE", &format!("{REGION}/keypairs/new"), "").result();
    server.import("new", 3).result();
    server.attach("new", &["i-run"], "no").result();
    let third = guest.poll(0);
    assert_eq!((&third["publicKey"], &third["replace"]), (&json!(public_key_line(3)), &json!(true)));
}

/// KP-3.34.
#[test]
fn key_text_is_never_logged() {
    let server = start_fleet_server();
    server.import("my-test", 1).result();
    let body = json!({ "keyName": "bad", "publicKey": format!("no-pty {}", public_key_line(9)) }).to_string();
    server.call_api("POST", &format!("{REGION}/keypairs:import"), &body);
    server.attach("my-test", &["i-run"], "no").result();
    server.guest("i-run").put_result(&server.guest("i-run").poll(0), "failed");
    let (status, log) = server.stop_with_signal("TERM");
    assert!(status.success());
    for text in ["SHA256:", "silent", "LOCKOUT_GUARD", "i-run", "Malformed PublicKey"] {
        assert!(log.contains(text), "{text} is not in:\n{log}");
    }
    assert!(!log.contains("AAAA"), "{log}");
}
