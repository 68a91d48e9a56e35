//! Signed commands (KP-3.38 to KP-3.43). The agent performs only commands that `ssh-keygen -Y sign` has signed. A
//! rejected command changes nothing and does not prevent a genuine one with the same id.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use base64ct::{Base64, Encoding};
use ed25519_dalek::Signer as _;
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};
use support::daemon::{Daemon, make_channel_command};
use support::signing::{
    make_envelope, make_fresh_command, rfc3339_after, sign_command, sign_in_namespace, sign_payload,
};
use support::{
    GuestOptions, MetadataService, TestDir, TestGuest, TestKey, attach_command, has_tools,
    set_password_auth_command, wait_for, with_field,
};
use time::Duration;

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// An instance that requires signed commands, and its platform.
struct SignedGuest {
    metadata: MetadataService,
    guest: TestGuest,
    platform: TestKey,
}

impl SignedGuest {
    fn new() -> Self {
        let metadata = MetadataService::start();
        let guest =
            TestGuest::with_options(GuestOptions { metadata: Some(&metadata), ..GuestOptions::default() });
        let path = guest.path("allowed_signers");
        let config = fs::read_to_string(&guest.config).unwrap();
        fs::write(&guest.config, format!("trusted_signers = \"{}\"\n{config}", path.display())).unwrap();
        let platform = TestKey::new(&guest.folder, "platform");
        let signed = Self { metadata, guest, platform };
        signed.write_allowed_signers(&format!(
            "# the platform\nplatform@cloud namespaces=\"keypair-agent\" {}\n",
            signed.platform.line
        ));
        signed
    }

    fn write_allowed_signers(&self, signers: &str) {
        fs::write(self.guest.path("allowed_signers"), signers).unwrap();
    }

    fn add_allowed_signer(&self, options: &str, key: &TestKey) {
        let before = fs::read_to_string(self.guest.path("allowed_signers")).unwrap();
        self.write_allowed_signers(&format!("{before}other@cloud {options} {}\n", key.line));
    }

    fn read_state(&self) -> Vec<u8> {
        fs::read(self.guest.path("state/state.json")).unwrap()
    }

    /// Queues a command and returns its result.
    fn queue_and_wait_for_result(&self, id: &str, command: Value) -> Value {
        self.metadata.queue(command);
        self.metadata.wait_for_result(id)
    }

    #[track_caller]
    fn assert_accepted(&self, id: &str, command: Value) {
        let result = self.queue_and_wait_for_result(id, command);
        assert_eq!(result["status"], "succeeded", "{result}");
    }

    /// Asserts that a command is rejected for this reason, changes nothing and is not remembered. Returns the
    /// message.
    #[track_caller]
    fn assert_rejected(&self, id: &str, command: Value, reason: &str) -> String {
        wait_for("an empty outbox", || {
            let state: Value = serde_json::from_slice(&self.read_state()).unwrap();
            state["undelivered"].is_null().then_some(())
        });
        let (files, state) = (self.guest.snapshot(), self.read_state());
        let result = self.queue_and_wait_for_result(id, command);
        assert_eq!(
            (&result["reason"], &result["changed"]),
            (&json!(reason), &json!(false)),
            "{id}: {result}"
        );
        assert_eq!(self.guest.snapshot(), files, "{id}");
        assert_eq!(self.read_state().escape_ascii().to_string(), state.escape_ascii().to_string(), "{id}");
        self.metadata.forget_result(id);
        result["message"].as_str().unwrap().to_owned()
    }
}

/// Flips one bit of a signature.
fn flip_signature_bit(signature: &str) -> String {
    let mut lines: Vec<&str> = signature.lines().collect();
    let blob = Base64::decode_vec(&lines[1..lines.len() - 1].concat()).unwrap();
    let mut other = blob.clone();
    *other.last_mut().unwrap() ^= 1;
    let encoded = Base64::encode_string(&other);
    lines.splice(1..lines.len() - 1, [encoded.as_str()]);
    lines.join("\n")
}

/// KP-3.38, KP-3.40, KP-4.7.
#[test]
fn signed_command_is_accepted_and_rotation_needs_no_restart() {
    if !has_tools(&TOOLS) {
        return;
    }
    let signed_guest = SignedGuest::new();
    let SignedGuest { metadata, guest, platform } = &signed_guest;
    let key = TestKey::new(&guest.folder, "me");
    let _daemon = Daemon::start(guest);
    signed_guest.assert_accepted(
        "c-1",
        sign_command(platform, &make_fresh_command("c-1", 1, attach_command("my-test", &key, "no"))),
    );
    assert!(guest.sshd.accepts_key(&key) && !guest.sshd.offers_password());
    let announced = wait_for("what runs here", || metadata.agent_reports().pop());
    assert!(announced["capabilities"].as_array().unwrap().contains(&json!("signed")), "{announced}");

    for (sequence, bits) in [(2, "256"), (3, "384"), (4, "521")] {
        let next = TestKey::of_type(&guest.folder, &format!("next{bits}"), &["-t", "ecdsa", "-b", bits]);
        signed_guest.write_allowed_signers(&format!("* {}\n", next.line));
        let id = format!("c-{sequence}");
        let command = make_fresh_command(&id, sequence, set_password_auth_command("no"));
        signed_guest.assert_rejected(&id, sign_command(platform, &command), "BAD_SIGNATURE");
        signed_guest.assert_accepted(&id, sign_command(&next, &command));
    }

    // A repeated command gets the same result bytes, and the agent does nothing.
    signed_guest.write_allowed_signers(&format!("* {}\n", platform.line));
    let first = metadata.results().into_iter().find(|(id, _)| id == "c-1").unwrap();
    metadata.forget_result("c-1");
    metadata
        .queue(sign_command(platform, &make_fresh_command("c-1", 1, attach_command("my-test", &key, "no"))));
    metadata.wait_for_result("c-1");
    assert!(metadata.results().contains(&first), "byte for byte");
}

/// KP-3.26, KP-3.38, KP-3.39, KP-3.41.
#[test]
fn signed_command_rejected_leaves_id_reusable() {
    if !has_tools(&TOOLS) {
        return;
    }
    let signed_guest = SignedGuest::new();
    let SignedGuest { guest, platform, .. } = &signed_guest;
    let key = |name: &str| TestKey::new(&guest.folder, name);
    let (own, evil, unlisted, retired, early, git) =
        (key("own"), key("evil"), key("unlisted"), key("retired"), key("early"), key("git"));
    let rsa = TestKey::of_type(&guest.folder, "rsa", &["-t", "rsa", "-b", "2048"]);
    signed_guest.add_allowed_signer("valid-before=\"20260101Z\"", &retired);
    signed_guest.add_allowed_signer("valid-after=\"20990101\"", &early);
    signed_guest.add_allowed_signer("namespaces=\"git,file\"", &git);
    signed_guest.add_allowed_signer("", &rsa);
    let certified = key("certified");
    let done = Command::new("ssh-keygen")
        .args(["-q", "-I", "x", "-s"])
        .arg(&platform.private)
        .arg(certified.private.with_extension("key.pub"))
        .status()
        .unwrap();
    assert!(done.success());
    signed_guest.add_allowed_signer("cert-authority", &certified);
    let _daemon = Daemon::start(guest);
    signed_guest.assert_accepted(
        "c-1",
        sign_command(platform, &make_fresh_command("c-1", 1, attach_command("my-test", &own, "no"))),
    );
    assert!(guest.sshd.accepts_key(&own) && !guest.sshd.offers_password());

    let mut sequence = 1;
    let mut refused = |reason: &str, because: &str, forge: &dyn Fn(Value) -> Value| {
        sequence += 1;
        let id = format!("c-{sequence}");
        let takeover = with_field(attach_command("evil", &evil, "yes"), "replace", json!(true));
        let message =
            signed_guest.assert_rejected(&id, forge(make_fresh_command(&id, sequence, takeover)), reason);
        assert!(message.contains(because), "{because}: {message}");
        signed_guest.assert_accepted(
            &id,
            sign_command(platform, &make_fresh_command(&id, sequence, set_password_auth_command("no"))),
        );
    };
    let bytes = |command: &Value| command.to_string().into_bytes();

    refused("BAD_SIGNATURE", "is not signed", &|command| command);
    refused("BAD_SIGNATURE", "is not signed", &|command| {
        with_field(command, "sequence", json!((1u64 << 53) - 1))
    });
    refused("BAD_SIGNATURE", "not a signature of these bytes", &|command| {
        let genuine = bytes(&command);
        let text = String::from_utf8(genuine.clone()).unwrap();
        // One flipped bit in the key pair's name: `evil` becomes `dvil`.
        let flipped = text.replace("\"evil\"", "\"dvil\"").into_bytes();
        let differ: u32 = genuine.iter().zip(&flipped).map(|(one, other)| (one ^ other).count_ones()).sum();
        assert_eq!(differ, 1);
        make_envelope(&flipped, &sign_payload(platform, &genuine))
    });
    refused("BAD_SIGNATURE", "not a signature of these bytes", &|command| {
        let payload = bytes(&command);
        make_envelope(&payload, &flip_signature_bit(&sign_payload(platform, &payload)))
    });
    refused("BAD_SIGNATURE", "no SSH signature", &|command| {
        make_envelope(&bytes(&command), "signed, the platform")
    });
    refused("BAD_SIGNATURE", "is not listed in", &|command| sign_command(&unlisted, &command));
    refused("BAD_SIGNATURE", "not sign any more (valid-before)", &|command| sign_command(&retired, &command));
    refused("BAD_SIGNATURE", "not sign yet (valid-after)", &|command| sign_command(&early, &command));
    refused("BAD_SIGNATURE", "in other namespaces alone", &|command| sign_command(&git, &command));
    refused("BAD_SIGNATURE", "is not listed in", &|command| sign_command(&rsa, &command));
    refused("BAD_SIGNATURE", "made for another namespace", &|command| {
        let payload = bytes(&command);
        make_envelope(&payload, &sign_in_namespace("file", &platform.private, &payload))
    });
    refused("BAD_SIGNATURE", "", &|command| {
        let payload = bytes(&command);
        let certificate = certified.private.with_file_name("certified.key-cert.pub");
        make_envelope(&payload, &sign_in_namespace("keypair-agent", &certificate, &payload))
    });
    refused("WRONG_INSTANCE", "this one is i-test", &|command| {
        sign_command(platform, &with_field(command, "instanceId", json!("i-other")))
    });
    refused("EXPIRED", "which is past", &|command| {
        sign_command(platform, &with_field(command, "expiresAt", rfc3339_after(-Duration::seconds(1))))
    });
    refused("EXPIRED", "expiresAt", &|command| {
        sign_command(platform, &with_field(command, "expiresAt", Value::Null))
    });
    refused("EXPIRED", "24 hours at most", &|command| {
        sign_command(platform, &with_field(command, "expiresAt", rfc3339_after(Duration::hours(25))))
    });
    refused("STALE_COMMAND", "not above", &|command| {
        sign_command(platform, &with_field(command, "sequence", json!(1)))
    });
    // The agent checks all parsed fields before the signature.
    refused("INVALID_KEY_NAME", "keyName", &|command| with_field(command, "keyName", json!("a b")));
    refused(
        "MALFORMED_COMMAND",
        "not a string",
        &|command| json!({ "payload": Base64::encode_string(&bytes(&command)), "signature": 7 }),
    );

    assert!(guest.sshd.accepts_key(&own) && !guest.sshd.accepts_key(&evil) && !guest.sshd.offers_password());
    let state: Value = serde_json::from_slice(&signed_guest.read_state()).unwrap();
    assert_eq!(state["highest"]["sequence"], sequence, "{state}");
    assert!(!String::from_utf8(signed_guest.read_state()).unwrap().contains("evil"));
}

/// KP-3.40.
#[test]
fn allowed_signers_file_invalid_rejects_all_commands() {
    if !has_tools(&TOOLS) {
        return;
    }
    let signed_guest = SignedGuest::new();
    let SignedGuest { guest, platform, .. } = &signed_guest;
    let file = guest.path("allowed_signers");
    let sound = fs::read_to_string(&file).unwrap();
    let _daemon = Daemon::start(guest);
    signed_guest.assert_accepted(
        "c-1",
        sign_command(platform, &make_fresh_command("c-1", 1, set_password_auth_command("yes"))),
    );
    let mode = |bits| fs::set_permissions(&file, fs::Permissions::from_mode(bits)).unwrap();
    let says = |because: &str| {
        let name = file.display().to_string();
        for (words, place) in [(["check", "--json"], "checks"), (["status", "--json"], "problems")] {
            let output = guest.run_agent(&words);
            assert_eq!(output.status.code(), Some(1), "{words:?}");
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let said = report[place].to_string();
            assert!(said.contains(&name) && said.contains(because), "{words:?}: {because}: {said}");
        }
        let human = String::from_utf8(guest.run_agent(&["check"]).stdout).unwrap();
        assert!(human.contains("(BAD_SIGNATURE)") && human.contains("FAIL  signers"), "{human}");
    };
    let mut sequence = 1;
    let mut assert_command_rejected = |because: &str| {
        sequence += 1;
        let id = format!("c-{sequence}");
        let command =
            sign_command(platform, &make_fresh_command(&id, sequence, set_password_auth_command("yes")));
        let message = signed_guest.assert_rejected(&id, command, "BAD_SIGNATURE");
        assert!(
            message.contains(because) && message.contains(file.to_str().unwrap()),
            "{because}: {message}"
        );
        says(because);
    };

    fs::remove_file(&file).unwrap();
    assert_command_rejected("no such file");
    signed_guest.write_allowed_signers(&format!("{sound}other@cloud no-touch-required {}\n", platform.line));
    assert_command_rejected("an option that is known");
    signed_guest.write_allowed_signers(&sound);
    mode(0o646);
    assert_command_rejected("chmod o-w");
    mode(0o644);
    std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
    assert_command_rejected("not by root");
    std::os::unix::fs::chown(&file, Some(0), Some(65534)).unwrap();
    mode(0o664);
    assert_command_rejected("writable by gid 65534");
    mode(0o644);
    fs::set_permissions(guest.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let message = signed_guest.queue_and_wait_for_result(
        "c-9",
        sign_command(platform, &make_fresh_command("c-9", 9, set_password_auth_command("yes"))),
    )["message"]
        .to_string();
    fs::set_permissions(guest.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(message.contains("writable by everyone"), "{message}");
    signed_guest.metadata.forget_result("c-9");
    signed_guest.assert_accepted(
        "c-9",
        sign_command(platform, &make_fresh_command("c-9", 9, set_password_auth_command("yes"))),
    );

    let report: Value = serde_json::from_slice(&guest.run_agent(&["check", "--json"]).stdout).unwrap();
    let line = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "signers").unwrap();
    assert_eq!(
        (&line["ok"], &line["message"]),
        (&json!(true), &json!("1 of 1 listed may sign now; commands must be signed"))
    );
    // A signer that is not valid now, and a line that the agent does not trust at all.
    signed_guest.write_allowed_signers(&format!(
        "a valid-before=\"20260101Z\" {}\na cert-authority {}\n",
        platform.line, platform.line
    ));
    says("may sign now");
    let notes = String::from_utf8(guest.run_agent(&["check"]).stdout).unwrap();
    assert!(
        notes.contains("may not sign commands now") && notes.contains("a cert-authority trusts nobody here"),
        "{notes}"
    );
}

/// KP-3.42.
#[test]
fn console_and_unsigned_mode_need_no_signature() {
    if !has_tools(&TOOLS) {
        return;
    }
    let signed_guest = SignedGuest::new();
    let key = TestKey::new(&signed_guest.guest.folder, "me");
    let result = signed_guest.guest.apply(&attach_command("my-test", &key, "no"));
    assert_eq!(result["status"], "succeeded", "{result}");
    let anyhow = make_envelope(set_password_auth_command("yes").to_string().as_bytes(), "no signature");
    let result = signed_guest.guest.apply(&anyhow);
    assert_eq!(result["status"], "succeeded", "{result}");

    let metadata = MetadataService::start();
    let guest =
        TestGuest::with_options(GuestOptions { metadata: Some(&metadata), ..GuestOptions::default() });
    let _daemon = Daemon::start(&guest);
    let key = TestKey::new(&guest.folder, "me");
    let plain = make_channel_command("c-1", 1, attach_command("my-test", &key, "no")).to_string();
    metadata.queue(make_envelope(plain.as_bytes(), "no signature"));
    let result = metadata.wait_for_result("c-1");
    assert_eq!(result["status"], "succeeded", "{result}");
    assert!(guest.sshd.accepts_key(&key) && !guest.sshd.offers_password());
}

/// Starts a daemon on a machine with this product UUID.
fn start_daemon_on_machine(guest: &TestGuest, uuid: &str) -> Daemon {
    let run = guest.agent_command(&["run"]);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg("mount -t tmpfs -o mode=755 none /sys/class; mkdir -p /sys/class/dmi/id; echo \"$0\" >/sys/class/dmi/id/product_uuid; exec \"$@\"")
        .arg(uuid)
        .arg(run.get_program())
        .args(run.get_args())
        .stdout(Stdio::null());
    Daemon::spawn(guest, command)
}

/// KP-3.43.
#[test]
fn instance_id_of_known_machine_ignores_network() {
    if !has_tools(&[&TOOLS[..], &["unshare", "mount"]].concat()) {
        return;
    }
    const HERE: &str = "4C4C4544-0042-3510-8058-B4C04F4E4D32";
    const ELSEWHERE: &str = "d34db33f-0042-3510-8058-b4c04f4e4d32";
    let signed_guest = SignedGuest::new();
    let SignedGuest { metadata, guest, platform } = &signed_guest;
    let own = TestKey::new(&guest.folder, "own");
    let evil = TestKey::new(&guest.folder, "evil");
    let daemon = start_daemon_on_machine(guest, HERE);
    signed_guest.assert_accepted(
        "c-1",
        sign_command(platform, &make_fresh_command("c-1", 5, attach_command("my-test", &own, "no"))),
    );
    daemon.kill();

    // A genuine and fresh command for another customer's instance, in a network that reports that instance id.
    metadata.set_instance_id("i-his");
    let his = |id: &str, sequence| {
        let command = with_field(attach_command("evil", &evil, "yes"), "replace", json!(true));
        sign_command(
            platform,
            &with_field(make_fresh_command(id, sequence, command), "instanceId", json!("i-his")),
        )
    };
    let daemon = start_daemon_on_machine(guest, HERE);
    let message = signed_guest.assert_rejected("c-2", his("c-2", 6), "WRONG_INSTANCE");
    assert!(message.contains("this one is i-test"), "{message}");
    assert!(
        daemon.log().contains(
            "the metadata service says that this is i-his, and the machine is the one that is i-test"
        )
    );
    signed_guest.assert_accepted(
        "c-3",
        sign_command(platform, &make_fresh_command("c-3", 6, set_password_auth_command("no"))),
    );
    let old = sign_command(platform, &make_fresh_command("c-4", 5, set_password_auth_command("yes")));
    signed_guest.assert_rejected("c-4", old, "STALE_COMMAND");
    assert!(guest.sshd.accepts_key(&own) && !guest.sshd.accepts_key(&evil));
    daemon.kill();

    // A clone: another machine and another id. The sequence starts anew, and the clone inherits the key pair.
    let daemon = start_daemon_on_machine(guest, ELSEWHERE);
    let result = signed_guest.queue_and_wait_for_result(
        "c-5",
        sign_command(
            platform,
            &with_field(
                make_fresh_command("c-5", 1, set_password_auth_command("no")),
                "instanceId",
                json!("i-his"),
            ),
        ),
    );
    assert_eq!(
        (&result["status"], &result["instanceId"]),
        (&json!("succeeded"), &json!("i-his")),
        "{result}"
    );
    let state: Value = serde_json::from_slice(&signed_guest.read_state()).unwrap();
    assert_eq!(
        (&state["instanceId"], &state["binding"]["inherited"]),
        (&json!("i-his"), &json!(true)),
        "{state}"
    );
    daemon.kill();

    // The configured instance id takes precedence over the network and the machine.
    let config = fs::read_to_string(&guest.config).unwrap();
    fs::write(&guest.config, format!("instance_id = \"i-test\"\n{config}")).unwrap();
    let _daemon = start_daemon_on_machine(guest, ELSEWHERE);
    signed_guest.assert_accepted(
        "c-7",
        sign_command(platform, &make_fresh_command("c-7", 9, set_password_auth_command("no"))),
    );
    signed_guest.assert_rejected("c-6", his("c-6", 9), "WRONG_INSTANCE");
}

fn encode_ssh_string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// Encodes an mpint of RFC 4251.
fn encode_mpint(bytes: &[u8]) -> Vec<u8> {
    let significant: Vec<u8> = bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
    let sign: &[u8] = if significant.first().is_some_and(|first| *first >= 0x80) { &[0] } else { &[] };
    encode_ssh_string(&[sign, &significant].concat())
}

/// The bytes that a security key would sign, by PROTOCOL.sshsig and PROTOCOL.u2f, and the bytes after its signature.
fn build_token_message(payload: &[u8], application: &[u8], flags: u8) -> (Vec<u8>, Vec<u8>) {
    let message = [
        b"SSHSIG",
        &encode_ssh_string(b"keypair-agent")[..],
        &encode_ssh_string(b""),
        &encode_ssh_string(b"sha512"),
        &encode_ssh_string(&Sha512::digest(payload)),
    ]
    .concat();
    let trailer = [&[flags][..], &7u32.to_be_bytes()].concat();
    let asked = [&Sha256::digest(application)[..], &trailer, &Sha256::digest(&message)].concat();
    (asked, trailer)
}

fn armor_signature(public_key: &[u8], signature: &[u8]) -> String {
    let parts = [
        encode_ssh_string(public_key),
        encode_ssh_string(b"keypair-agent"),
        encode_ssh_string(b""),
        encode_ssh_string(b"sha512"),
        encode_ssh_string(signature),
    ]
    .concat();
    let blob = [b"SSHSIG\0\0\0\x01".to_vec(), parts].concat();
    format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", Base64::encode_string(&blob))
}

/// Runs `ssh-keygen -Y verify`, for signatures that no tool here can make.
fn verify_with_ssh_keygen(folder: &TestDir, public_key: &str, payload: &[u8], signature: &str) -> bool {
    use std::io::Write;
    let (signers, file) = (folder.path().join("verify_signers"), folder.path().join("verify.sig"));
    fs::write(&signers, format!("me {public_key}\n")).unwrap();
    fs::write(&file, signature).unwrap();
    let mut child = Command::new("ssh-keygen")
        .args(["-q", "-Y", "verify", "-I", "me", "-n", "keypair-agent", "-f"])
        .arg(&signers)
        .arg("-s")
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(payload).unwrap();
    let verified = child.wait().unwrap().success();
    fs::remove_file(signers).unwrap();
    fs::remove_file(file).unwrap();
    verified
}

#[test]
fn security_key_signatures_are_accepted() {
    if !has_tools(&TOOLS) {
        return;
    }
    let signed_guest = SignedGuest::new();
    let SignedGuest { guest, .. } = &signed_guest;
    let application = b"ssh:";
    let ed25519 = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let p256 = p256::ecdsa::SigningKey::from_slice(&[9; 32]).unwrap();
    let by_ed25519 = |payload: &[u8]| {
        let kind = b"sk-ssh-ed25519@openssh.com";
        let key = [
            encode_ssh_string(kind),
            encode_ssh_string(ed25519.verifying_key().as_bytes()),
            encode_ssh_string(application),
        ]
        .concat();
        let (asked, trailer) = build_token_message(payload, application, 1);
        let made =
            [encode_ssh_string(kind), encode_ssh_string(&ed25519.sign(&asked).to_bytes()), trailer].concat();
        (key.clone(), armor_signature(&key, &made))
    };
    let by_p256 = |payload: &[u8]| {
        let kind = b"sk-ecdsa-sha2-nistp256@openssh.com";
        let point = p256.verifying_key().to_encoded_point(false);
        let key = [
            encode_ssh_string(kind),
            encode_ssh_string(b"nistp256"),
            encode_ssh_string(point.as_bytes()),
            encode_ssh_string(application),
        ]
        .concat();
        let (asked, trailer) = build_token_message(payload, application, 1);
        let made: p256::ecdsa::Signature = p256.sign(&asked);
        let (r, s) = made.split_bytes();
        let made = [
            encode_ssh_string(kind),
            encode_ssh_string(&[encode_mpint(&r), encode_mpint(&s)].concat()),
            trailer,
        ]
        .concat();
        (key.clone(), armor_signature(&key, &made))
    };
    type Sign<'a> = &'a dyn Fn(&[u8]) -> (Vec<u8>, String);
    let _daemon = Daemon::start(guest);
    signed_guest.assert_accepted(
        "c-1",
        sign_command(&signed_guest.platform, &make_fresh_command("c-1", 1, set_password_auth_command("yes"))),
    );
    let tokens: [(&str, u64, Sign<'_>); 2] =
        [("sk-ssh-ed25519@openssh.com", 2, &by_ed25519), ("sk-ecdsa-sha2-nistp256@openssh.com", 3, &by_p256)];
    for (kind, sequence, sign) in tokens {
        let id = format!("c-{sequence}");
        let payload =
            make_fresh_command(&id, sequence, set_password_auth_command("yes")).to_string().into_bytes();
        let (key, signature) = sign(&payload);
        let public_key = format!("{kind} {}", Base64::encode_string(&key));
        assert!(verify_with_ssh_keygen(&guest.folder, &public_key, &payload, &signature), "{kind}");
        signed_guest.write_allowed_signers(&format!("token@cloud {public_key}\n"));
        let message = signed_guest.assert_rejected(
            &id,
            make_envelope(&payload, &flip_signature_bit(&signature)),
            "BAD_SIGNATURE",
        );
        assert!(message.contains("not a signature of these bytes"), "the counter is signed: {message}");
        signed_guest.assert_accepted(&id, make_envelope(&payload, &signature));
    }
}
