//! The JSON of instances and requests, and the instance states that an attach depends on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{REGION, Server, public_key_line, write_temp_file};

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

fn start_fleet_server() -> Server {
    Server::start(&["--attach-wait", "0", "--instances", &write_temp_file(FLEET)])
}

impl Server {
    fn get_instance(&self, id: &str) -> Value {
        self.call_api("GET", &format!("{REGION}/instances/{id}"), "").result()["instance"].clone()
    }

    fn post_action(&self, id: &str, verb: &str, body: &str) -> support::Response {
        self.call_api("POST", &format!("{REGION}/instances/{id}:{verb}"), body)
    }

    fn get_request(&self, request: &str) -> support::Response {
        self.call_api("GET", &format!("{REGION}/requests/{request}"), "")
    }
}

#[test]
fn instance_description_includes_agent_report() {
    let server = start_fleet_server();
    server.import("my-test", 1).result();
    assert_eq!(
        server.get_instance("i-run"),
        json!({ "instanceId": "i-run", "instanceName": "web", "hostname": "web", "osType": "linux", "status": "running",
                "privateIpAddress": "10.0.0.3", "keyNames": null, "agent": null })
    );
    server.attach("my-test", &["i-run"], "no").result();
    let report = r#"{"agentVersion":"3.1.0","hostKeys":[{"type":"ssh-ed25519","sha256":"SHA256:x"}],"passWordAuth":"no"}"#;
    assert_eq!(server.guest("i-run").put("/keypair/agent", report).status, 204);
    let shown = server.get_instance("i-run");
    assert_eq!(shown["keyNames"], "my-test");
    assert_eq!(shown["agent"], serde_json::from_str::<Value>(report).unwrap());
    for id in ["i-none", "i-east"] {
        let message = format!("Instance '{id}' not found.");
        server.call_api("GET", &format!("{REGION}/instances/{id}"), "").assert_error(
            404,
            "NOT_FOUND",
            &message,
        );
    }
}

#[test]
fn instance_list_filters_by_region_status_and_id() {
    let server = start_fleet_server();
    let list = |query: &str| server.call_api("GET", &format!("{REGION}/instances{query}"), "").result();
    let ids = |result: &Value| -> Vec<String> {
        let listed = result["instances"].as_array().unwrap();
        listed.iter().map(|one| one["instanceId"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&list("")), ["i-gone", "i-run", "i-stop", "i-win"]);
    assert_eq!(list("?pageNumber=2&pageSize=10"), json!({ "instances": [], "totalCount": 4 }));
    let both = "&filters.1.values.2=deleted&filters.2.name=instanceId&filters.2.values.1=i-gone";
    assert_eq!(ids(&list(&format!("?filters.1.name=status&filters.1.values.1=running{both}"))), ["i-gone"]);
    let bad =
        server.call_api("GET", &format!("{REGION}/instances?filters.1.name=vpcId&filters.1.values.1=x"), "");
    bad.assert_error(400, "INVALID_ARGUMENT", "filters.1.name is not one of 'instanceId', 'status'");
}

#[test]
fn instance_start_stop_and_reboot_change_status() {
    let server = start_fleet_server();
    server.import("my-test", 1).result();
    server.post_action("i-run", "startInstance", "").assert_error(
        400,
        "FAILED_PRECONDITION",
        "Invalid instance status running",
    );
    server.post_action("i-gone", "stopInstance", "").assert_error(
        400,
        "FAILED_PRECONDITION",
        "Invalid instance status deleted",
    );
    server.post_action("i-none", "stopInstance", "").assert_error(
        404,
        "NOT_FOUND",
        "Instance 'i-none' not found.",
    );
    server.post_action("i-run", "pauseInstance", "").assert_error(404, "NOT_FOUND", "no such path here");
    // An attach on a stopped instance succeeds at once. Its guest receives the command after the boot.
    server.post_action("i-run", "stopInstance", r#"{"regionId":"cn-north-1","instanceId":"i-run"}"#).result();
    server.attach("my-test", &["i-run"], "no").assert_bound(&["i-run"], &[]);
    for (verb, meanwhile) in [("startInstance", "starting"), ("rebootInstance", "rebooting")] {
        let begun = Instant::now();
        server.post_action("i-run", verb, "").result();
        let refused = server.detach("my-test", &["i-run"]);
        // On a slow machine the boot may end before both calls do. The status is then already `running`.
        if begun.elapsed() < Duration::from_secs(2) {
            let message = format!("Invalid instance status {meanwhile}");
            refused.assert_error(400, "FAILED_PRECONDITION", &message);
        }
        assert_eq!(server.guest("i-run").poll(0)["action"], "attach");
        let patience = Instant::now() + Duration::from_secs(60);
        while server.get_instance("i-run")["status"] != "running" {
            assert!(Instant::now() < patience, "{meanwhile}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    server.guest("i-run").put_result(&server.guest("i-run").poll(0), "succeeded");
    server.detach("my-test", &["i-run"]).result();
}

/// KP-9.7.
#[test]
fn password_reset_queues_password_auth_yes() {
    let server = start_fleet_server();
    let reset = |id: &str, password: &str| {
        server.post_action(id, "modifyInstancePassword", &json!({ "password": password }).to_string())
    };
    reset("i-run", "Correct-horse1").result();
    reset("i-run", "Correct-horse2").result();
    let guest = server.guest("i-run");
    let command = guest.poll(0);
    assert_eq!((&command["action"], &command["passWordAuth"]), (&json!("setPasswordAuth"), &json!("yes")));
    guest.put_result(&command, "succeeded");
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
    let (_, log) = server.stop_with_signal("TERM");
    assert!(!log.contains("orse"), "{log}");
}

#[test]
fn late_result_is_found_by_request_id() {
    let server = start_fleet_server();
    server.import("my-test", 1).result();
    let response = server.attach("my-test", &["i-run", "i-stop"], "no");
    response.assert_bound(&["i-stop"], &["i-run"]);
    let request = response.json()["requestId"].as_str().unwrap().to_owned();
    let command = server.guest("i-run").poll(0);
    let fate = server.get_request(&request).result();
    assert_eq!(fate["requestId"], json!(request));
    let expected = json!({ "instanceId": "i-run", "commandId": command["commandId"], "action": "attach",
                           "keyName": "my-test", "status": "queued", "result": null });
    assert_eq!(fate["commands"][0], expected);
    server.guest("i-run").put_result(&command, "failed");
    let fate = server.get_request(&request).result();
    assert_eq!(
        (&fate["commands"][0]["status"], &fate["commands"][1]["status"]),
        (&json!("failed"), &json!("queued"))
    );
    assert_eq!(fate["commands"][0]["result"]["reason"], "LOCKOUT_GUARD");
    // A repeated attach returns the same command. It can be found under the new request id too.
    let again = server.attach("my-test", &["i-stop"], "no").json()["requestId"].as_str().unwrap().to_owned();
    assert_eq!(
        server.get_request(&again).result()["commands"][0]["commandId"],
        fate["commands"][1]["commandId"]
    );
    let elsewhere = format!("/v1/regions/cn-east-2/requests/{request}");
    let not_found = format!("Request '{request}' not found.");
    server.call_api("GET", &elsewhere, "").assert_error(404, "NOT_FOUND", &not_found);
    server.get_request("nobody").assert_error(404, "NOT_FOUND", "Request 'nobody' not found.");
}

#[test]
fn action_after_encoded_colon_is_routed() {
    let server = start_fleet_server();
    let body = json!({ "keyName": "my-test", "publicKey": public_key_line(1) }).to_string();
    server.call_api("POST", &format!("{REGION}/keypairs%3Aimport"), &body).result();
    let body = json!({ "instanceIds": ["i-stop"], "passWordAuth": "no" }).to_string();
    server
        .call_api("POST", &format!("{REGION}/keypairs/my-test%3aattach"), &body)
        .assert_bound(&["i-stop"], &[]);
    server.post_action("i-run", "stopInstance", "").result();
}

#[test]
fn created_key_pair_returns_private_key_once() {
    let server = start_fleet_server();
    let create = || {
        server.call_api(
            "POST",
            &format!("{REGION}/keypairs"),
            r#"{"regionId":"cn-north-1","keyName":"made"}"#,
        )
    };
    let made = create().result();
    assert!(made["privateKey"].as_str().unwrap().starts_with("-----BEGIN PRIVATE KEY-----\n"));
    create().assert_error(400, "FAILED_PRECONDITION", "KeyName 'made' already in use");
    server.attach("made", &["i-run"], "no").result();
    let line = server.guest("i-run").poll(0)["publicKey"].as_str().unwrap().to_owned();
    assert!(line.starts_with("ecdsa-sha2-nistp256 "), "{line}");
    let listed = server.call_api("GET", &format!("{REGION}/keypairs"), "").result();
    assert_eq!(listed["keypairs"][0]["keyFingerprint"], made["keyFingerprint"]);
    let (_, log) = server.stop_with_signal("TERM");
    assert!(!log.contains("PRIVATE"), "{log}");
}
