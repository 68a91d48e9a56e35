//! What is shown of instances and requests, and the states that an attach depends on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{REGION, Server, file, key};

const FLEET: &str = "
[[instance]]
id = 'i-run'
hostname = 'web'
address = '10.0.0.3'
[[instance]]
id = 'i-stop'
status = 'stopped'
[[instance]]
id = 'i-win'
os_type = 'windows'
[[instance]]
id = 'i-gone'
status = 'deleted'
[[instance]]
id = 'i-east'
region = 'cn-east-2'
";

fn fleet() -> Server {
    Server::start(&["--attach-wait", "0", "--instances", &file(FLEET)])
}

impl Server {
    fn instance(&self, id: &str) -> Value {
        self.call("GET", &format!("{REGION}/instances/{id}"), "").result()["instance"].clone()
    }

    fn verb(&self, id: &str, verb: &str, body: &str) -> support::Response {
        self.call("POST", &format!("{REGION}/instances/{id}:{verb}"), body)
    }

    fn fate(&self, request: &str) -> support::Response {
        self.call("GET", &format!("{REGION}/requests/{request}"), "")
    }
}

#[test]
fn an_instance_is_shown_with_what_its_agent_says() {
    let server = fleet();
    server.import("my-test", 1).result();
    assert_eq!(
        server.instance("i-run"),
        json!({ "instanceId": "i-run", "instanceName": "web", "hostname": "web", "osType": "linux", "status": "running",
                "privateIpAddress": "10.0.0.3", "keyNames": null, "agent": null })
    );
    server.attach("my-test", &["i-run"], "no").result();
    let report = r#"{"agentVersion":"3.1.0","hostKeys":[{"type":"ssh-ed25519","sha256":"SHA256:x"}],"passWordAuth":"no"}"#;
    assert_eq!(server.guest("i-run").put("/keypair/agent", report).status, 204);
    let shown = server.instance("i-run");
    assert_eq!(shown["keyNames"], "my-test");
    assert_eq!(shown["agent"], serde_json::from_str::<Value>(report).unwrap());
    for id in ["i-none", "i-east"] {
        let message = format!("Instance '{id}' not found.");
        server.call("GET", &format!("{REGION}/instances/{id}"), "").assert_error(404, "NOT_FOUND", &message);
    }
}

#[test]
fn instances_are_listed_by_region_state_and_id() {
    let server = fleet();
    let list = |query: &str| server.call("GET", &format!("{REGION}/instances{query}"), "").result();
    let ids = |result: &Value| -> Vec<String> {
        let listed = result["instances"].as_array().unwrap();
        listed.iter().map(|one| one["instanceId"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&list("")), ["i-gone", "i-run", "i-stop", "i-win"]);
    assert_eq!(list("?pageNumber=2&pageSize=10"), json!({ "instances": [], "totalCount": 4 }));
    let both = "&filters.1.values.2=deleted&filters.2.name=instanceId&filters.2.values.1=i-gone";
    assert_eq!(ids(&list(&format!("?filters.1.name=status&filters.1.values.1=running{both}"))), ["i-gone"]);
    let bad =
        server.call("GET", &format!("{REGION}/instances?filters.1.name=vpcId&filters.1.values.1=x"), "");
    bad.assert_error(400, "INVALID_ARGUMENT", "filters.1.name is not one of 'instanceId', 'status'");
}

#[test]
fn start_stop_and_reboot() {
    let server = fleet();
    server.import("my-test", 1).result();
    server.verb("i-run", "startInstance", "").assert_error(
        400,
        "FAILED_PRECONDITION",
        "Invalid instance status running",
    );
    server.verb("i-gone", "stopInstance", "").assert_error(
        400,
        "FAILED_PRECONDITION",
        "Invalid instance status deleted",
    );
    server.verb("i-none", "stopInstance", "").assert_error(404, "NOT_FOUND", "Instance 'i-none' not found.");
    server.verb("i-run", "pauseInstance", "").assert_error(404, "NOT_FOUND", "no such path here");
    // A stopped one is attached at once, and told when it boots.
    server.verb("i-run", "stopInstance", r#"{"regionId":"cn-north-1","instanceId":"i-run"}"#).result();
    server.attach("my-test", &["i-run"], "no").assert_bound(&["i-run"], &[]);
    for (verb, meanwhile) in [("startInstance", "starting"), ("rebootInstance", "rebooting")] {
        let begun = Instant::now();
        server.verb("i-run", verb, "").result();
        let refused = server.detach("my-test", &["i-run"]);
        // A machine that takes longer for two calls than a boot does sees it running already.
        if begun.elapsed() < Duration::from_secs(2) {
            let message = format!("Invalid instance status {meanwhile}");
            refused.assert_error(400, "FAILED_PRECONDITION", &message);
        }
        assert_eq!(server.guest("i-run").poll(0)["action"], "attach");
        let patience = Instant::now() + Duration::from_secs(60);
        while server.instance("i-run")["status"] != "running" {
            assert!(Instant::now() < patience, "{meanwhile}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    server.guest("i-run").answer(&server.guest("i-run").poll(0), "succeeded");
    server.detach("my-test", &["i-run"]).result();
}

/// KP-9.7.
#[test]
fn a_reset_of_the_password_turns_password_login_on() {
    let server = fleet();
    let reset = |id: &str, password: &str| {
        server.verb(id, "modifyInstancePassword", &json!({ "password": password }).to_string())
    };
    reset("i-run", "Correct-horse1").result();
    reset("i-run", "Correct-horse2").result();
    let guest = server.guest("i-run");
    let command = guest.poll(0);
    assert_eq!((&command["action"], &command["passWordAuth"]), (&json!("setPasswordAuth"), &json!("yes")));
    guest.answer(&command, "succeeded");
    assert_eq!(guest.get("/keypair/command").status, 204, "the second reset asked for the same");
    reset("i-stop", "Correct-horse1").result();
    assert_eq!(server.guest("i-stop").poll(0)["action"], "setPasswordAuth");
    reset("i-win", "Correct-horse1").result();
    assert_eq!(server.guest("i-win").get("/keypair/command").status, 204);
    reset("i-gone", "Correct-horse1").assert_error(
        400,
        "FAILED_PRECONDITION",
        "Invalid instance status deleted",
    );
    for bad in ["", "correct-horse", "Short1!", &"Ab1".repeat(11)] {
        assert_eq!(reset("i-run", bad).json()["error"]["status"], "INVALID_ARGUMENT", "{bad}");
    }
    let (_, log) = server.end("TERM");
    assert!(!log.contains("orse"), "{log}");
}

#[test]
fn a_late_result_is_found_by_the_requests_id() {
    let server = fleet();
    server.import("my-test", 1).result();
    let response = server.attach("my-test", &["i-run", "i-stop"], "no");
    response.assert_bound(&["i-stop"], &["i-run"]);
    let request = response.json()["requestId"].as_str().unwrap().to_owned();
    let command = server.guest("i-run").poll(0);
    let fate = server.fate(&request).result();
    assert_eq!(fate["requestId"], json!(request));
    let expected = json!({ "instanceId": "i-run", "commandId": command["commandId"], "action": "attach",
                           "keyName": "my-test", "status": "queued", "result": null });
    assert_eq!(fate["commands"][0], expected);
    server.guest("i-run").answer(&command, "failed");
    let fate = server.fate(&request).result();
    assert_eq!(
        (&fate["commands"][0]["status"], &fate["commands"][1]["status"]),
        (&json!("failed"), &json!("queued"))
    );
    assert_eq!(fate["commands"][0]["result"]["reason"], "LOCKOUT_GUARD");
    // The same attach again is the same command, under its own request too.
    let again = server.attach("my-test", &["i-stop"], "no").json()["requestId"].as_str().unwrap().to_owned();
    assert_eq!(server.fate(&again).result()["commands"][0]["commandId"], fate["commands"][1]["commandId"]);
    let elsewhere = format!("/v1/regions/cn-east-2/requests/{request}");
    let not_found = format!("Request '{request}' not found.");
    server.call("GET", &elsewhere, "").assert_error(404, "NOT_FOUND", &not_found);
    server.fate("nobody").assert_error(404, "NOT_FOUND", "Request 'nobody' not found.");
}

#[test]
fn a_verb_is_found_behind_an_encoded_colon() {
    let server = fleet();
    let body = json!({ "keyName": "my-test", "publicKey": key(1) }).to_string();
    server.call("POST", &format!("{REGION}/keypairs%3Aimport"), &body).result();
    let body = json!({ "instanceIds": ["i-stop"], "passWordAuth": "no" }).to_string();
    server.call("POST", &format!("{REGION}/keypairs/my-test%3aattach"), &body).assert_bound(&["i-stop"], &[]);
    server.verb("i-run", "stopInstance", "").result();
}

#[test]
fn a_key_pair_that_is_made_here() {
    let server = fleet();
    let create = || {
        server.call("POST", &format!("{REGION}/keypairs"), r#"{"regionId":"cn-north-1","keyName":"made"}"#)
    };
    let made = create().result();
    assert!(made["privateKey"].as_str().unwrap().starts_with("-----BEGIN PRIVATE KEY-----\n"));
    create().assert_error(400, "FAILED_PRECONDITION", "KeyName 'made' already in use");
    server.attach("made", &["i-run"], "no").result();
    let line = server.guest("i-run").poll(0)["publicKey"].as_str().unwrap().to_owned();
    assert!(line.starts_with("ecdsa-sha2-nistp256 "), "{line}");
    let listed = server.call("GET", &format!("{REGION}/keypairs"), "").result();
    assert_eq!(listed["keypairs"][0]["keyFingerprint"], made["keyFingerprint"]);
    let (_, log) = server.end("TERM");
    assert!(!log.contains("PRIVATE"), "{log}");
}
