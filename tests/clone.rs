//! An image's copy of the state meets another instance id (contract 7).

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::json;
use support::daemon::{Daemon, queued};
use support::metadata::Metadata;
use support::{Form, Guest, Key, attach, available, with};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

#[test]
fn a_clone_starts_anew_with_an_inherited_key() {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
    let (key, other) = (Key::new(&guest.folder, "k"), Key::new(&guest.folder, "l"));
    let daemon = Daemon::start(&guest);
    metadata.queue(queued("c-1", 900, attach("my-test", &key, "no")));
    metadata.wait_for_result("c-1");
    assert!(daemon.terminate().success());
    metadata.instance("i-clone");
    let _daemon = Daemon::start(&guest);
    let first = with(queued("c-2", 1, attach("other", &other, "no")), "instanceId", json!("i-clone"));
    metadata.queue(first);
    let result = metadata.wait_for_result("c-2");
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_eq!(result["warnings"][0]["reason"], "INHERITED_KEY_REPLACED");
    assert!(guest.sshd.lets_in(&other) && !guest.sshd.lets_in(&key));
}
