//! A home, and a mount point, whose names are not UTF-8, as an old passwd(5) has them: state, result, plan, status.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod matrix_support;
mod support;

use matrix_support::land::{Land, OWN_FILE, land};
use serde_json::{Value, json};
use support::detach;

/// `/home/j\xfcrgen`, ISO 8859-1.
const MOVED: &str = "export LC_ALL=C; home=$(printf '/home/j\\374rgen'); mv /home/u \"$home\"; \
                     sed -i \"s,:/home/u:,:$home:,\" /etc/passwd";

/// The same on a volume of its own.
const MOUNTED: &str = "export LC_ALL=C; home=$(printf '/home/j\\374rgen'); mkdir -p /vol \"$home\"; \
                       mv /home/u /vol/u; mount --bind /vol/u \"$home\"; sed -i \"s,:/home/u:,:$home:,\" /etc/passwd";

fn block_stands(land: &Land<'_>, stands: bool) {
    let not = if stands { "" } else { "! " };
    land.sh(&format!("{not}grep -q 'BEGIN keypair-agent' /home/j*rgen/.ssh/authorized_keys"));
}

#[test]
fn a_home_that_is_not_utf8() {
    for (form, is_volume) in [(MOVED, false), (MOUNTED, true)] {
        land("u", &format!("{OWN_FILE}; {form}"), "", |land| {
            for asked in ["no", "yes"] {
                let planned = land.agent(&["plan", "-"], &land.attach(asked).to_string());
                assert!(planned.status.success(), "{planned:?}");
                let result = land.done(&land.attach(asked));
                assert!(
                    result["authorizedKeysFile"].as_str().unwrap().ends_with("rgen/.ssh/authorized_keys")
                );
                assert_eq!(result["trial"]["key"], "accepted", "{result}");
                assert!(land.lets_in("u"), "{result}");
                block_stands(land, true);
                // What was written is read: the state stands, and by it nothing is left to be done.
                let state = land.state();
                assert_eq!(state["binding"]["keyName"], "k", "{state}");
                assert_eq!(state["binding"]["path"], "/home/j\0fcrgen/.ssh/authorized_keys");
                assert_eq!(state["binding"]["mount"] == "/home/j\0fcrgen", is_volume, "{state}");
                assert_eq!(land.done(&land.attach(asked))["changed"], false);
                let status = land.agent(&["status", "--json"], "");
                let status: Value = serde_json::from_slice(&status.stdout).unwrap();
                assert_eq!(status["binding"]["keyName"], "k", "{status}");
                assert!(!status["problems"].to_string().contains("changed by somebody"), "{status}");
            }
            let result = land.done(&detach("k"));
            assert_eq!(result["changed"], json!(true), "{result}");
            block_stands(land, false);
            assert!(!land.lets_in("u"));
            land.done(&land.attach("no"));
            land.undone();
            block_stands(land, false);
        });
    }
}
