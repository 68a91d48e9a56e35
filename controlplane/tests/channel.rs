//! The command channel, with requests like those of an agent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Read;

use serde_json::json;
use support::{REGION, Server, read_response, result_json, send_request};

fn start_with_two_instances() -> Server {
    let server = Server::start(&["--attach-wait", "0", "--instance", "i-1", "--instance", "i-2"]);
    for (name, number) in [("k", 1), ("l", 2)] {
        server.import(name, number).result();
    }
    server
}

/// KP-3.6.
#[test]
fn poll_without_wait_answers_at_once() {
    let server = start_with_two_instances();
    for path in ["/keypair/command", "/keypair/command?wait=0"] {
        let response = server.guest("i-1").get(path);
        assert_eq!((response.status, response.body.as_str()), (204, ""));
    }
    assert_eq!(server.guest("i-1").get("/keypair/command?wait=1").status, 204);
    assert_eq!(server.guest("i-1").get("/keypair/command?wait=soon").status, 400);
}

#[test]
fn long_poll_is_woken_only_for_its_instance() {
    let server = start_with_two_instances();
    let (one, two) = (server.guest("i-1"), server.guest("i-2"));
    // Both polls wait longer than the client's timeout. Only a command ends them in time.
    let mut waiting = send_request(&one.host, "GET", "/i-1/metadata/latest/keypair/command?wait=300", "");
    let mut other = send_request(&two.host, "GET", "/i-2/metadata/latest/keypair/command?wait=300", "");
    server.attach("k", &["i-1"], "no").result();
    let mut text = String::new();
    waiting.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains(r#""instanceId":"i-1""#), "{text}");
    other.set_nonblocking(true).unwrap();
    let nothing = other.read(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
}

/// KP-3.6.
#[test]
fn command_is_handed_out_until_result_is_stored() {
    let server = start_with_two_instances();
    let guest = server.guest("i-1");
    // A client that disconnects must not consume the command.
    drop(send_request(&guest.host, "GET", "/i-1/metadata/latest/keypair/command?wait=300", ""));
    server.attach("k", &["i-1"], "no").result();
    let command = guest.poll(0);
    assert_eq!(guest.poll(0), command);
    assert_eq!(guest.poll(60), command);
    let fields: Vec<&String> = command.as_object().unwrap().keys().collect();
    let expected =
        ["action", "commandId", "instanceId", "keyName", "passWordAuth", "publicKey", "replace", "sequence"];
    assert_eq!(fields, expected);
    guest.put_result(&command, "succeeded");
    assert_eq!(guest.get("/keypair/command").status, 204);
}

/// KP-3.6.
#[test]
fn commands_arrive_in_order_with_rising_sequences() {
    let server = start_with_two_instances();
    let guest = server.guest("i-1");
    server.attach("k", &["i-1"], "no").result();
    server.detach("k", &["i-1"]).result();
    server.attach("l", &["i-1"], "yes").result();
    let mut seen = Vec::new();
    let mut highest = 0;
    for _ in 0..3 {
        let command = guest.poll(0);
        let sequence = command["sequence"].as_u64().unwrap();
        assert!(sequence > highest && sequence < 1 << 53);
        highest = sequence;
        seen.push((command["action"].clone(), command["keyName"].clone()));
        assert_eq!(guest.put_result(&command, "succeeded").status, 204);
    }
    let expected = [("attach", "k"), ("detach", "k"), ("attach", "l")];
    assert_eq!(seen, expected.map(|(action, name)| (json!(action), json!(name))));
    assert_eq!(guest.get("/keypair/command").status, 204);
}

/// KP-3.6.
#[test]
fn result_repeated_is_204_and_changed_is_409() {
    let server = start_with_two_instances();
    let guest = server.guest("i-1");
    server.attach("k", &["i-1"], "no").result();
    let command = guest.poll(0);
    let id = command["commandId"].as_str().unwrap();
    let path = format!("/keypair/results/{id}");
    let good = result_json(id, "i-1", "succeeded").to_string();
    // No result at all, an empty object, JSON that is not an object, the result of another command, and a result that
    // is too long.
    let mut long = result_json(id, "i-1", "succeeded");
    long["message"] = json!("x".repeat(70_000));
    for bad in ["", "{}", "null", &result_json("else", "i-1", "succeeded").to_string(), &long.to_string()] {
        assert_eq!(guest.put(&path, bad).status, 400, "{:.80}", bad);
    }
    assert_eq!(guest.poll(0), command, "none of them was taken");
    assert_eq!(guest.put(&path, &good).status, 204);
    assert_eq!(guest.put(&path, &good).status, 204, "the same again");
    assert_eq!(guest.put(&path, &result_json(id, "i-1", "failed").to_string()).status, 409);
    for unknown in ["nobody", "not%20an%20id"] {
        let result = result_json("nobody", "i-1", "succeeded").to_string();
        assert_eq!(guest.put(&format!("/keypair/results/{unknown}"), &result).status, 404);
    }
    assert_eq!(server.guest("i-2").put(&path, &good).status, 404, "another instance's command");
}

#[test]
fn result_with_foreign_instance_id_is_accepted() {
    let server = start_with_two_instances();
    let guest = server.guest("i-1");
    server.attach("k", &["i-1"], "no").result();
    let id = guest.poll(0)["commandId"].as_str().unwrap().to_owned();
    let result = result_json(&id, "i-elsewhere", "failed").to_string();
    assert_eq!(guest.put(&format!("/keypair/results/{id}"), &result).status, 204);
    assert_eq!(guest.get("/keypair/command").status, 204);
}

#[test]
fn commands_and_results_are_separate_per_instance() {
    let server = start_with_two_instances();
    let (one, two) = (server.guest("i-1"), server.guest("i-2"));
    server.attach("k", &["i-1", "i-2"], "no").result();
    let (first, second) = (one.poll(0), two.poll(0));
    assert_eq!((&first["instanceId"], &second["instanceId"]), (&json!("i-1"), &json!("i-2")));
    assert_ne!(first["commandId"], second["commandId"]);
    assert_eq!(one.put_result(&second, "succeeded").status, 404);
    one.put_result(&first, "failed");
    assert_eq!(two.poll(0), second);
    let list = server.call_api("GET", &format!("{REGION}/keypairs"), "").result();
    assert_eq!(list["keypairs"][0]["instanceIds"], json!(["i-2"]));
}

#[test]
fn agent_report_must_be_json_object() {
    let server = start_with_two_instances();
    let guest = server.guest("i-1");
    for body in [r#"{"agentVersion":"3.1.0","binding":null}"#, "{}"] {
        assert_eq!(guest.put("/keypair/agent", body).status, 204);
    }
    for body in ["", "[]", "3.1.0"] {
        assert_eq!(guest.put("/keypair/agent", body).status, 400, "{body}");
    }
    assert_eq!(guest.get("/keypair/agent").status, 405);
}

#[test]
fn waiting_calls_end_when_server_stops() {
    let server = Server::start(&["--attach-wait", "300", "--instance", "i-1", "--instance", "i-2"]);
    server.import("k", 1).result();
    let poll =
        send_request(&server.guest("i-2").host, "GET", "/i-2/metadata/latest/keypair/command?wait=300", "");
    let body = r#"{"instanceIds":["i-1"],"passWordAuth":"no"}"#;
    let attach = send_request(&server.api, "POST", &format!("{REGION}/keypairs/k:attach"), body);
    // After its command was handed out, the attach waits for the result. The poll was sent earlier and waits too.
    server.guest("i-1").poll(60);
    let (status, _) = server.stop_with_signal("TERM");
    assert!(status.success());
    read_response(poll).unwrap().assert_retry_after();
    read_response(attach).unwrap().assert_bound(&[], &["i-1"]);
}
