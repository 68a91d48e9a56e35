//! The documented metadata tree, and the choice of the instance that it describes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use base64ct::{Base64, Encoding};
use serde_json::json;
use support::{Server, http, public_key_line, write_temp_file};

/// KP-1.3.
#[test]
fn metadata_tree_matches_documentation() {
    let fleet = write_temp_file("[[instance]]\nid = 'i-1'\nhostname = 'web-1'\n");
    let server = Server::start(&["--attach-wait", "0", "--instances", &fleet]);
    let guest = server.guest("i-1");
    let root = json!([
        "attributes/",
        "network/",
        "placement/",
        "image/",
        "description",
        "instance-name",
        "instance-type",
        "instance-id",
        "pin"
    ]);
    for (path, value) in [
        ("", root.clone()),
        ("/", root),
        ("/instance-id", json!("i-1")),
        ("/placement/", json!(["region"])),
        ("/placement", json!(["region"])),
        ("/placement/region", json!("cn-north-1")),
        ("/image/os-type", json!("linux")),
        ("/attributes/hostname", json!("web-1")),
        ("/attributes/", json!(["hostname"])),
    ] {
        let response = guest.get(path);
        assert_eq!((response.status, response.json()), (200, value), "{path}");
    }
    assert_eq!(guest.get("/attributes/ssh-keys").status, 404);
    assert_eq!(guest.get("/nothing").status, 404);
    assert_eq!(guest.put("/instance-id", "\"i-2\"").status, 405);

    server.import("k", 1).result();
    server.attach("k", &["i-1"], "no").result();
    assert_eq!(guest.get("/attributes/").json(), json!(["hostname", "ssh-keys"]));
    let encoded = guest.get("/attributes/ssh-keys").json();
    assert_eq!(Base64::decode_vec(encoded.as_str().unwrap()).unwrap(), public_key_line(1).into_bytes());
    guest.put_result(&guest.poll(0), "failed");
    assert_eq!(guest.get("/attributes/ssh-keys").status, 404);
}

/// KP-9.1.
#[test]
fn metadata_without_id_serves_only_instance() {
    let server = Server::start(&["--instance", "i-1"]);
    let host = server.guest("i-1").host;
    for (path, value) in
        [("/metadata/latest/instance-id", json!("i-1")), ("/metadata/latest/image/", json!(["os-type"]))]
    {
        assert_eq!(http(&host, "GET", path, "").json(), value);
    }
    assert_eq!(http(&host, "GET", "/metadata/latest", "").json().as_array().unwrap().len(), 9);
    assert_eq!(http(&host, "GET", "/metadata/latest/", "").json().as_array().unwrap().len(), 9);
    assert_eq!(http(&host, "GET", "/metadata/latest/keypair/command?wait=0", "").status, 204);
    assert_eq!(http(&host, "PUT", "/metadata/latest/keypair/agent", "{}").status, 204);
    assert_eq!(http(&host, "PUT", "/metadata/latest/keypair/results/x", "{}").status, 404);
    assert_eq!(http(&host, "GET", "/i-2/metadata/latest/instance-id", "").status, 404);
    assert_eq!(http(&host, "GET", "/", "").status, 404);
}

/// KP-9.1.
#[test]
fn metadata_without_id_is_chosen_by_caller_address() {
    let fleet = write_temp_file(
        "[[instance]]\nid = 'i-1'\naddress = '192.0.2.7'\n[[instance]]\nid = 'i-2'\naddress = '127.0.0.1'\n",
    );
    let server = Server::start(&["--instances", &fleet]);
    let host = server.guest("i-1").host;
    assert_eq!(http(&host, "GET", "/metadata/latest/instance-id", "").json(), "i-2");
    assert_eq!(http(&host, "GET", "/i-1/metadata/latest/instance-id", "").json(), "i-1");

    let server = Server::start(&["--instance", "i-1", "--instance", "i-2"]);
    let host = server.guest("i-1").host;
    assert_eq!(http(&host, "GET", "/metadata/latest/instance-id", "").status, 404);
}
