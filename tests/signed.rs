//! Signed commands (KP-3.38 to KP-3.43): what `ssh-keygen -Y sign` signs is obeyed, and nothing else is; what is
//! refused changes nothing and stands in no genuine command's way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use base64ct::{Base64, Encoding};
use ed25519_dalek::Signer as _;
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};
use support::daemon::{Daemon, queued};
use support::signing::{envelope, fresh, in_, signature, signature_in, signed};
use support::{Folder, Form, Guest, Key, Metadata, attach, available, set_password_auth, wait_for, with};
use time::Duration;

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// An instance whose commands must be signed, and its platform.
struct Signed {
    metadata: Metadata,
    guest: Guest,
    platform: Key,
}

impl Signed {
    fn new() -> Self {
        let metadata = Metadata::start();
        let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
        let path = guest.path("allowed_signers");
        let config = fs::read_to_string(&guest.config).unwrap();
        fs::write(&guest.config, format!("trusted_signers = \"{}\"\n{config}", path.display())).unwrap();
        let platform = Key::new(&guest.folder, "platform");
        let signed = Self { metadata, guest, platform };
        signed.trusts(&format!(
            "# the platform\nplatform@cloud namespaces=\"keypair-agent\" {}\n",
            signed.platform.line
        ));
        signed
    }

    fn trusts(&self, signers: &str) {
        fs::write(self.guest.path("allowed_signers"), signers).unwrap();
    }

    fn also_trusts(&self, options: &str, key: &Key) {
        let before = fs::read_to_string(self.guest.path("allowed_signers")).unwrap();
        self.trusts(&format!("{before}other@cloud {options} {}\n", key.line));
    }

    fn state(&self) -> Vec<u8> {
        fs::read(self.guest.path("state/state.json")).unwrap()
    }

    /// What becomes of a command.
    fn result(&self, id: &str, command: Value) -> Value {
        self.metadata.queue(command);
        self.metadata.wait_for_result(id)
    }

    #[track_caller]
    fn obeys(&self, id: &str, command: Value) {
        let result = self.result(id, command);
        assert_eq!(result["status"], "succeeded", "{result}");
    }

    /// A command is refused for this reason, changes nothing and is not remembered; the text says why.
    #[track_caller]
    fn refuses(&self, id: &str, command: Value, reason: &str) -> String {
        wait_for("an empty outbox", || {
            let state: Value = serde_json::from_slice(&self.state()).unwrap();
            state["undelivered"].is_null().then_some(())
        });
        let (files, state) = (self.guest.snapshot(), self.state());
        let result = self.result(id, command);
        assert_eq!(
            (&result["reason"], &result["changed"]),
            (&json!(reason), &json!(false)),
            "{id}: {result}"
        );
        assert_eq!(self.guest.snapshot(), files, "{id}");
        assert_eq!(self.state().escape_ascii().to_string(), state.escape_ascii().to_string(), "{id}");
        self.metadata.forget_result(id);
        result["message"].as_str().unwrap().to_owned()
    }
}

/// A bit of the signature is another.
fn spoiled(signature: &str) -> String {
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
fn what_ssh_keygen_signs_is_obeyed_and_a_rotation_needs_no_restart() {
    if !available(&TOOLS) {
        return;
    }
    let signed_guest = Signed::new();
    let Signed { metadata, guest, platform } = &signed_guest;
    let key = Key::new(&guest.folder, "me");
    let _daemon = Daemon::start(guest);
    signed_guest.obeys("c-1", signed(platform, &fresh("c-1", 1, attach("my-test", &key, "no"))));
    assert!(guest.sshd.lets_in(&key) && !guest.sshd.offers_password());
    let announced = wait_for("what runs here", || metadata.announced().pop());
    assert!(announced["capabilities"].as_array().unwrap().contains(&json!("signed")), "{announced}");

    for (sequence, bits) in [(2, "256"), (3, "384"), (4, "521")] {
        let next = Key::of_type(&guest.folder, &format!("next{bits}"), &["-t", "ecdsa", "-b", bits]);
        signed_guest.trusts(&format!("* {}\n", next.line));
        let id = format!("c-{sequence}");
        let command = fresh(&id, sequence, set_password_auth("no"));
        signed_guest.refuses(&id, signed(platform, &command), "BAD_SIGNATURE");
        signed_guest.obeys(&id, signed(&next, &command));
    }

    // Seen before: the same bytes once more, and nothing done.
    signed_guest.trusts(&format!("* {}\n", platform.line));
    let first = metadata.results().into_iter().find(|(id, _)| id == "c-1").unwrap();
    metadata.forget_result("c-1");
    metadata.queue(signed(platform, &fresh("c-1", 1, attach("my-test", &key, "no"))));
    metadata.wait_for_result("c-1");
    assert!(metadata.results().contains(&first), "byte for byte");
}

/// KP-3.26, KP-3.38, KP-3.39, KP-3.41.
#[test]
fn what_is_refused_changes_nothing_and_burns_no_genuine_commands_id() {
    if !available(&TOOLS) {
        return;
    }
    let signed_guest = Signed::new();
    let Signed { guest, platform, .. } = &signed_guest;
    let key = |name: &str| Key::new(&guest.folder, name);
    let (own, evil, unlisted, retired, early, git) =
        (key("own"), key("evil"), key("unlisted"), key("retired"), key("early"), key("git"));
    let rsa = Key::of_type(&guest.folder, "rsa", &["-t", "rsa", "-b", "2048"]);
    signed_guest.also_trusts("valid-before=\"20260101Z\"", &retired);
    signed_guest.also_trusts("valid-after=\"20990101\"", &early);
    signed_guest.also_trusts("namespaces=\"git,file\"", &git);
    signed_guest.also_trusts("", &rsa);
    let certified = key("certified");
    let done = Command::new("ssh-keygen")
        .args(["-q", "-I", "x", "-s"])
        .arg(&platform.private)
        .arg(certified.private.with_extension("key.pub"))
        .status()
        .unwrap();
    assert!(done.success());
    signed_guest.also_trusts("cert-authority", &certified);
    let _daemon = Daemon::start(guest);
    signed_guest.obeys("c-1", signed(platform, &fresh("c-1", 1, attach("my-test", &own, "no"))));
    assert!(guest.sshd.lets_in(&own) && !guest.sshd.offers_password());

    let mut sequence = 1;
    let mut refused = |reason: &str, because: &str, forge: &dyn Fn(Value) -> Value| {
        sequence += 1;
        let id = format!("c-{sequence}");
        let takeover = with(attach("evil", &evil, "yes"), "replace", json!(true));
        let message = signed_guest.refuses(&id, forge(fresh(&id, sequence, takeover)), reason);
        assert!(message.contains(because), "{because}: {message}");
        signed_guest.obeys(&id, signed(platform, &fresh(&id, sequence, set_password_auth("no"))));
    };
    let bytes = |command: &Value| command.to_string().into_bytes();

    refused("BAD_SIGNATURE", "is not signed", &|command| command);
    refused("BAD_SIGNATURE", "is not signed", &|command| with(command, "sequence", json!((1u64 << 53) - 1)));
    refused("BAD_SIGNATURE", "not a signature of these bytes", &|command| {
        let genuine = bytes(&command);
        let text = String::from_utf8(genuine.clone()).unwrap();
        // One bit of the key pair's name: `evil` becomes `dvil`.
        let flipped = text.replace("\"evil\"", "\"dvil\"").into_bytes();
        let differ: u32 = genuine.iter().zip(&flipped).map(|(one, other)| (one ^ other).count_ones()).sum();
        assert_eq!(differ, 1);
        envelope(&flipped, &signature(platform, &genuine))
    });
    refused("BAD_SIGNATURE", "not a signature of these bytes", &|command| {
        let payload = bytes(&command);
        envelope(&payload, &spoiled(&signature(platform, &payload)))
    });
    refused("BAD_SIGNATURE", "no SSH signature", &|command| {
        envelope(&bytes(&command), "signed, the platform")
    });
    refused("BAD_SIGNATURE", "is not listed in", &|command| signed(&unlisted, &command));
    refused("BAD_SIGNATURE", "not sign any more (valid-before)", &|command| signed(&retired, &command));
    refused("BAD_SIGNATURE", "not sign yet (valid-after)", &|command| signed(&early, &command));
    refused("BAD_SIGNATURE", "in other namespaces alone", &|command| signed(&git, &command));
    refused("BAD_SIGNATURE", "is not listed in", &|command| signed(&rsa, &command));
    refused("BAD_SIGNATURE", "made for another namespace", &|command| {
        let payload = bytes(&command);
        envelope(&payload, &signature_in("file", &platform.private, &payload))
    });
    refused("BAD_SIGNATURE", "", &|command| {
        let payload = bytes(&command);
        let certificate = certified.private.with_file_name("certified.key-cert.pub");
        envelope(&payload, &signature_in("keypair-agent", &certificate, &payload))
    });
    refused("WRONG_INSTANCE", "this one is i-test", &|command| {
        signed(platform, &with(command, "instanceId", json!("i-other")))
    });
    refused("EXPIRED", "which is past", &|command| {
        signed(platform, &with(command, "expiresAt", in_(-Duration::seconds(1))))
    });
    refused("EXPIRED", "expiresAt", &|command| signed(platform, &with(command, "expiresAt", Value::Null)));
    refused("EXPIRED", "24 hours at most", &|command| {
        signed(platform, &with(command, "expiresAt", in_(Duration::hours(25))))
    });
    refused("STALE_COMMAND", "not above", &|command| signed(platform, &with(command, "sequence", json!(1))));
    // All that is parsed is judged first.
    refused("INVALID_KEY_NAME", "keyName", &|command| with(command, "keyName", json!("a b")));
    refused(
        "MALFORMED_COMMAND",
        "not a string",
        &|command| json!({ "payload": Base64::encode_string(&bytes(&command)), "signature": 7 }),
    );

    assert!(guest.sshd.lets_in(&own) && !guest.sshd.lets_in(&evil) && !guest.sshd.offers_password());
    let state: Value = serde_json::from_slice(&signed_guest.state()).unwrap();
    assert_eq!(state["highest"]["sequence"], sequence, "{state}");
    assert!(!String::from_utf8(signed_guest.state()).unwrap().contains("evil"));
}

/// KP-3.40.
#[test]
fn a_signers_file_that_does_not_count_is_named_and_nothing_is_obeyed() {
    if !available(&TOOLS) {
        return;
    }
    let signed_guest = Signed::new();
    let Signed { guest, platform, .. } = &signed_guest;
    let file = guest.path("allowed_signers");
    let sound = fs::read_to_string(&file).unwrap();
    let _daemon = Daemon::start(guest);
    signed_guest.obeys("c-1", signed(platform, &fresh("c-1", 1, set_password_auth("yes"))));
    let mode = |bits| fs::set_permissions(&file, fs::Permissions::from_mode(bits)).unwrap();
    let says = |because: &str| {
        let name = file.display().to_string();
        for (words, place) in [(["check", "--json"], "checks"), (["status", "--json"], "problems")] {
            let output = guest.agent(&words);
            assert_eq!(output.status.code(), Some(1), "{words:?}");
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let said = report[place].to_string();
            assert!(said.contains(&name) && said.contains(because), "{words:?}: {because}: {said}");
        }
        let human = String::from_utf8(guest.agent(&["check"]).stdout).unwrap();
        assert!(human.contains("(BAD_SIGNATURE)") && human.contains("FAIL  signers"), "{human}");
    };
    let mut sequence = 1;
    let mut nothing_is_obeyed = |because: &str| {
        sequence += 1;
        let id = format!("c-{sequence}");
        let command = signed(platform, &fresh(&id, sequence, set_password_auth("yes")));
        let message = signed_guest.refuses(&id, command, "BAD_SIGNATURE");
        assert!(
            message.contains(because) && message.contains(file.to_str().unwrap()),
            "{because}: {message}"
        );
        says(because);
    };

    fs::remove_file(&file).unwrap();
    nothing_is_obeyed("no such file");
    signed_guest.trusts(&format!("{sound}other@cloud no-touch-required {}\n", platform.line));
    nothing_is_obeyed("an option that is known");
    signed_guest.trusts(&sound);
    mode(0o646);
    nothing_is_obeyed("chmod o-w");
    mode(0o644);
    std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
    nothing_is_obeyed("not by root");
    std::os::unix::fs::chown(&file, Some(0), Some(65534)).unwrap();
    mode(0o664);
    nothing_is_obeyed("writable by gid 65534");
    mode(0o644);
    fs::set_permissions(guest.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let message =
        signed_guest.result("c-9", signed(platform, &fresh("c-9", 9, set_password_auth("yes"))))["message"]
            .to_string();
    fs::set_permissions(guest.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(message.contains("writable by everyone"), "{message}");
    signed_guest.metadata.forget_result("c-9");
    signed_guest.obeys("c-9", signed(platform, &fresh("c-9", 9, set_password_auth("yes"))));

    let report: Value = serde_json::from_slice(&guest.agent(&["check", "--json"]).stdout).unwrap();
    let line = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "signers").unwrap();
    assert_eq!(
        (&line["ok"], &line["message"]),
        (&json!(true), &json!("1 of 1 listed may sign now; commands must be signed"))
    );
    // Valid for nobody now, and a line that trusts nobody.
    signed_guest.trusts(&format!(
        "a valid-before=\"20260101Z\" {}\na cert-authority {}\n",
        platform.line, platform.line
    ));
    says("may sign now");
    let notes = String::from_utf8(guest.agent(&["check"]).stdout).unwrap();
    assert!(
        notes.contains("may not sign commands now") && notes.contains("a cert-authority trusts nobody here"),
        "{notes}"
    );
}

/// KP-3.42.
#[test]
fn the_console_needs_no_signature_and_without_the_setting_an_envelope_is_a_plain_command() {
    if !available(&TOOLS) {
        return;
    }
    let signed_guest = Signed::new();
    let key = Key::new(&signed_guest.guest.folder, "me");
    let result = signed_guest.guest.apply(&attach("my-test", &key, "no"));
    assert_eq!(result["status"], "succeeded", "{result}");
    let anyhow = envelope(set_password_auth("yes").to_string().as_bytes(), "no signature");
    let result = signed_guest.guest.apply(&anyhow);
    assert_eq!(result["status"], "succeeded", "{result}");

    let metadata = Metadata::start();
    let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
    let _daemon = Daemon::start(&guest);
    let key = Key::new(&guest.folder, "me");
    let plain = queued("c-1", 1, attach("my-test", &key, "no")).to_string();
    metadata.queue(envelope(plain.as_bytes(), "no signature"));
    let result = metadata.wait_for_result("c-1");
    assert_eq!(result["status"], "succeeded", "{result}");
    assert!(guest.sshd.lets_in(&key) && !guest.sshd.offers_password());
}

/// A daemon on the machine of this product UUID.
fn on_machine(guest: &Guest, uuid: &str) -> Daemon {
    let run = guest.command(&["run"]);
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
fn the_network_does_not_say_who_we_are() {
    if !available(&[&TOOLS[..], &["unshare", "mount"]].concat()) {
        return;
    }
    const HERE: &str = "4C4C4544-0042-3510-8058-B4C04F4E4D32";
    const ELSEWHERE: &str = "d34db33f-0042-3510-8058-b4c04f4e4d32";
    let signed_guest = Signed::new();
    let Signed { metadata, guest, platform } = &signed_guest;
    let own = Key::new(&guest.folder, "own");
    let evil = Key::new(&guest.folder, "evil");
    let daemon = on_machine(guest, HERE);
    signed_guest.obeys("c-1", signed(platform, &fresh("c-1", 5, attach("my-test", &own, "no"))));
    daemon.kill();

    // Another customer's command, genuine and fresh, and a network that says we are his instance.
    metadata.instance("i-his");
    let his = |id: &str, sequence| {
        let command = with(attach("evil", &evil, "yes"), "replace", json!(true));
        signed(platform, &with(fresh(id, sequence, command), "instanceId", json!("i-his")))
    };
    let daemon = on_machine(guest, HERE);
    let message = signed_guest.refuses("c-2", his("c-2", 6), "WRONG_INSTANCE");
    assert!(message.contains("this one is i-test"), "{message}");
    assert!(
        daemon.log().contains(
            "the metadata service says that this is i-his, and the machine is the one that is i-test"
        )
    );
    signed_guest.obeys("c-3", signed(platform, &fresh("c-3", 6, set_password_auth("no"))));
    let old = signed(platform, &fresh("c-4", 5, set_password_auth("yes")));
    signed_guest.refuses("c-4", old, "STALE_COMMAND");
    assert!(guest.sshd.lets_in(&own) && !guest.sshd.lets_in(&evil));
    daemon.kill();

    // A clone: another machine and another id. The sequence starts anew, the key pair is inherited.
    let daemon = on_machine(guest, ELSEWHERE);
    let result = signed_guest.result(
        "c-5",
        signed(platform, &with(fresh("c-5", 1, set_password_auth("no")), "instanceId", json!("i-his"))),
    );
    assert_eq!(
        (&result["status"], &result["instanceId"]),
        (&json!("succeeded"), &json!("i-his")),
        "{result}"
    );
    let state: Value = serde_json::from_slice(&signed_guest.state()).unwrap();
    assert_eq!(
        (&state["instanceId"], &state["binding"]["inherited"]),
        (&json!("i-his"), &json!(true)),
        "{state}"
    );
    daemon.kill();

    // The configuration says who we are, whatever the network and the machine.
    let config = fs::read_to_string(&guest.config).unwrap();
    fs::write(&guest.config, format!("instance_id = \"i-test\"\n{config}")).unwrap();
    let _daemon = on_machine(guest, ELSEWHERE);
    signed_guest.obeys("c-7", signed(platform, &fresh("c-7", 9, set_password_auth("no"))));
    signed_guest.refuses("c-6", his("c-6", 9), "WRONG_INSTANCE");
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// An integer of RFC 4251.
fn mpint(bytes: &[u8]) -> Vec<u8> {
    let significant: Vec<u8> = bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
    let sign: &[u8] = if significant.first().is_some_and(|first| *first >= 0x80) { &[0] } else { &[] };
    string(&[sign, &significant].concat())
}

/// What a security key would sign, by PROTOCOL.sshsig and PROTOCOL.u2f, and what follows its signature.
fn asked_of_token(payload: &[u8], application: &[u8], flags: u8) -> (Vec<u8>, Vec<u8>) {
    let message = [
        b"SSHSIG",
        &string(b"keypair-agent")[..],
        &string(b""),
        &string(b"sha512"),
        &string(&Sha512::digest(payload)),
    ]
    .concat();
    let trailer = [&[flags][..], &7u32.to_be_bytes()].concat();
    let asked = [&Sha256::digest(application)[..], &trailer, &Sha256::digest(&message)].concat();
    (asked, trailer)
}

fn armoured(public_key: &[u8], signature: &[u8]) -> String {
    let parts =
        [string(public_key), string(b"keypair-agent"), string(b""), string(b"sha512"), string(signature)]
            .concat();
    let blob = [b"SSHSIG\0\0\0\x01".to_vec(), parts].concat();
    format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", Base64::encode_string(&blob))
}

/// `ssh-keygen -Y verify`, for what no tool here signs.
fn ssh_keygen_verifies(folder: &Folder, public_key: &str, payload: &[u8], signature: &str) -> bool {
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
fn security_keys_sign_too() {
    if !available(&TOOLS) {
        return;
    }
    let signed_guest = Signed::new();
    let Signed { guest, .. } = &signed_guest;
    let application = b"ssh:";
    let ed25519 = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let p256 = p256::ecdsa::SigningKey::from_slice(&[9; 32]).unwrap();
    let by_ed25519 = |payload: &[u8]| {
        let kind = b"sk-ssh-ed25519@openssh.com";
        let key = [string(kind), string(ed25519.verifying_key().as_bytes()), string(application)].concat();
        let (asked, trailer) = asked_of_token(payload, application, 1);
        let made = [string(kind), string(&ed25519.sign(&asked).to_bytes()), trailer].concat();
        (key.clone(), armoured(&key, &made))
    };
    let by_p256 = |payload: &[u8]| {
        let kind = b"sk-ecdsa-sha2-nistp256@openssh.com";
        let point = p256.verifying_key().to_encoded_point(false);
        let key = [string(kind), string(b"nistp256"), string(point.as_bytes()), string(application)].concat();
        let (asked, trailer) = asked_of_token(payload, application, 1);
        let made: p256::ecdsa::Signature = p256.sign(&asked);
        let (r, s) = made.split_bytes();
        let made = [string(kind), string(&[mpint(&r), mpint(&s)].concat()), trailer].concat();
        (key.clone(), armoured(&key, &made))
    };
    type Sign<'a> = &'a dyn Fn(&[u8]) -> (Vec<u8>, String);
    let _daemon = Daemon::start(guest);
    signed_guest.obeys("c-1", signed(&signed_guest.platform, &fresh("c-1", 1, set_password_auth("yes"))));
    let tokens: [(&str, u64, Sign<'_>); 2] =
        [("sk-ssh-ed25519@openssh.com", 2, &by_ed25519), ("sk-ecdsa-sha2-nistp256@openssh.com", 3, &by_p256)];
    for (kind, sequence, sign) in tokens {
        let id = format!("c-{sequence}");
        let payload = fresh(&id, sequence, set_password_auth("yes")).to_string().into_bytes();
        let (key, signature) = sign(&payload);
        let public_key = format!("{kind} {}", Base64::encode_string(&key));
        assert!(ssh_keygen_verifies(&guest.folder, &public_key, &payload, &signature), "{kind}");
        signed_guest.trusts(&format!("token@cloud {public_key}\n"));
        let message = signed_guest.refuses(&id, envelope(&payload, &spoiled(&signature)), "BAD_SIGNATURE");
        assert!(message.contains("not a signature of these bytes"), "the counter is signed: {message}");
        signed_guest.obeys(&id, envelope(&payload, &signature));
    }
}
