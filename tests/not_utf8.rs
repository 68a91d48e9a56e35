//! A home and a mount point with names that are not UTF-8, as in an old passwd(5): state, result, plan, status.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod matrix_support;
mod support;

use matrix_support::land::{GuestFixture, OWN_FILE, with_guest};
use serde_json::{Value, json};
use support::detach_command;

/// `/home/j\xfcrgen`, ISO 8859-1.
const MOVE_HOME_SCRIPT: &str = "export LC_ALL=C; home=$(printf '/home/j\\374rgen'); mv /home/u \"$home\"; \
                     sed -i \"s,:/home/u:,:$home:,\" /etc/passwd";

/// The same with the home on its own volume.
const MOUNT_HOME_SCRIPT: &str = "export LC_ALL=C; home=$(printf '/home/j\\374rgen'); mkdir -p /vol \"$home\"; \
                       mv /home/u /vol/u; mount --bind /vol/u \"$home\"; sed -i \"s,:/home/u:,:$home:,\" /etc/passwd";

fn assert_block_presence(land: &GuestFixture<'_>, stands: bool) {
    let not = if stands { "" } else { "! " };
    land.run_script(&format!("{not}grep -q 'BEGIN keypair-agent' /home/j*rgen/.ssh/authorized_keys"));
}

#[test]
fn non_utf8_home_path_is_supported() {
    for (form, is_volume) in [(MOVE_HOME_SCRIPT, false), (MOUNT_HOME_SCRIPT, true)] {
        with_guest("u", &format!("{OWN_FILE}; {form}"), "", |land| {
            for asked in ["no", "yes"] {
                let planned = land.run_agent(&["plan", "-"], &land.attach_command(asked).to_string());
                assert!(planned.status.success(), "{planned:?}");
                let result = land.apply_ok(&land.attach_command(asked));
                assert!(
                    result["authorizedKeysFile"].as_str().unwrap().ends_with("rgen/.ssh/authorized_keys")
                );
                assert_eq!(result["trial"]["key"], "accepted", "{result}");
                assert!(land.accepts_bound_key("u"), "{result}");
                assert_block_presence(land, true);
                // The agent can read its own state, and by it a repeated command has nothing to do.
                let state = land.read_state();
                assert_eq!(state["binding"]["keyName"], "k", "{state}");
                assert_eq!(state["binding"]["path"], "/home/j\0fcrgen/.ssh/authorized_keys");
                assert_eq!(state["binding"]["mount"] == "/home/j\0fcrgen", is_volume, "{state}");
                assert_eq!(land.apply_ok(&land.attach_command(asked))["changed"], false);
                let status = land.run_agent(&["status", "--json"], "");
                let status: Value = serde_json::from_slice(&status.stdout).unwrap();
                assert_eq!(status["binding"]["keyName"], "k", "{status}");
                assert!(!status["problems"].to_string().contains("changed by somebody"), "{status}");
            }
            let result = land.apply_ok(&detach_command("k"));
            assert_eq!(result["changed"], json!(true), "{result}");
            assert_block_presence(land, false);
            assert!(!land.accepts_bound_key("u"));
            land.apply_ok(&land.attach_command("no"));
            land.assert_undo();
            assert_block_presence(land, false);
        });
    }
}
