//! Start and end of the server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::net::TcpListener;

use serde_json::json;
use support::{Server, controlplane_command, http, write_temp_file};

/// KP-9.1.
#[test]
fn startup_line_lists_api_and_metadata_urls() {
    let server =
        Server::start(&["--instance", "i-b", "--instances", &write_temp_file("[[instance]]\nid = 'i-a'\n")]);
    let bases = server.bases.as_object().unwrap();
    assert_eq!(bases.keys().collect::<Vec<_>>(), ["i-a", "i-b"]);
    for (id, base) in bases {
        let base = base.as_str().unwrap().strip_prefix("http://").unwrap();
        let (host, path) = base.split_once('/').unwrap();
        assert_eq!(path, format!("{id}/metadata/latest"));
        assert_eq!(http(host, "GET", &format!("/{path}/instance-id"), "").json(), json!(id));
    }
    assert_eq!(http(&server.api, "GET", "/v1/regions/cn-north-1/keypairs", "").status, 200);
}

/// KP-9.1.
#[test]
fn sigterm_and_sigint_stop_server() {
    for signal in ["TERM", "INT"] {
        let (status, _) = Server::start(&["--instance", "i-1"]).stop_with_signal(signal);
        assert_eq!(status.code(), Some(0), "{signal}");
    }
}

#[test]
fn usage_and_config_errors_exit_2_and_name_cause() {
    let bad = write_temp_file("[[instance]]\nid = 'i-1'\nstate = 'running'\n");
    let twice = write_temp_file("[[instance]]\nid = 'i-1'\n");
    for (args, said) in [
        (vec![], "Usage"),
        (vec!["serve", "--store", "mysql:x"], "a store is memory:, sqlite:PATH or postgres:"),
        (vec!["serve", "--api", "nowhere"], "--api"),
        (vec!["serve", "--attach-wait", "soon"], "--attach-wait"),
        (vec!["serve", "--access-keys", "/does/not/exist"], "--access-keys: /does/not/exist"),
        (vec!["serve", "--signing-key", "x"], "--signing-key"),
        (vec!["serve", "--instance", "a/b"], "'a/b'"),
        (vec!["serve", "--instances", "/does/not/exist"], "/does/not/exist"),
        (vec!["serve", "--instances", &bad], ".toml:3: "),
        (vec!["serve", "--instance", "i-1", "--instances", &twice], ".toml:2: "),
    ] {
        let output = controlplane_command().args(&args).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(said), "{args:?}: {error}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn listen_address_in_use_exits_1_and_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = controlplane_command()
        .args(["serve", "--metadata", "127.0.0.1:0", "--api", &address])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&address) && error.contains("--api"), "{error}");
}

#[test]
fn version_equals_agent_version() {
    let output = controlplane_command().arg("--version").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "keypair-controlplane 3.1.0\n");
}
