//! Hours of answers from somebody who is not the metadata service: the daemon lives, takes no more memory, and
//! nothing changes in the guest. Then the service itself is heard, and obeyed.
//!
//! To an agent whose commands must be signed he says good commands without a signature, and captured ones that were
//! signed: for another instance, or too long ago. To another agent, whom anybody may command who has the address, he
//! says all but a command that can be obeyed.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::daemon::{Daemon, Size, queued};
use crate::support::liar::Liar;
use crate::support::signing::{envelope, expiring, signed};
use crate::support::{Form, Guest, Key, Metadata, attach, available, detach, set_password_auth, with};
use serde_json::{Value, json};

/// For how many seconds; `make test-hostile-answers` says two hours.
const TIME: &str = "KEYPAIR_HOSTILE_ANSWERS";
const SHORT: u64 = 20;
/// The luck of the answers; said where it fails.
const SEED: &str = "KEYPAIR_HOSTILE_SEED";
/// The genuine command, and its sequence: above all that a liar may have said.
const GOOD: &str = "good";
const LAST: u64 = (1 << 53) - 1;
/// From so many polls on memory is looked at: before, it grows to what one command after another needs.
const MEASURED_FROM: usize = 200;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect(variable))
}

/// An agent under a liar, and what the service behind him says at the end.
struct Scene {
    name: &'static str,
    metadata: Metadata,
    guest: Guest,
    liar: Liar,
    /// Made when it is handed out: its signature lasts a day at most.
    good: Box<dyn FnOnce() -> Value + Send>,
}

/// What is close to a command, and the genuine one.
type Said = (Vec<Value>, Box<dyn FnOnce() -> Value + Send>);

impl Scene {
    /// `agent` is its configuration.
    fn new(
        name: &'static str,
        agent: impl FnOnce(&Guest) -> String,
        says: impl FnOnce(&Guest) -> Said,
    ) -> Self {
        let metadata = Metadata::start();
        let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
        let (pool, good) = says(&guest);
        let pool = pool.iter().map(|value| value.to_string().into_bytes()).collect();
        let liar = Liar::start(&metadata, number(SEED, 7), pool);
        guest.configure(&agent(&guest), &liar.url());
        Self { name, metadata, guest, liar, good }
    }

    fn lives_through_it(self, time: Duration) {
        let Self { name, metadata, guest, liar, good } = self;
        let before = guest.snapshot();
        let mut daemon = Daemon::start(&guest);
        let begun = Instant::now();
        let mut first = None;
        while begun.elapsed() < time {
            thread::sleep(Duration::from_millis(100));
            assert!(daemon.is_alive(), "{name}: {}", daemon.log());
            if liar.polls() >= MEASURED_FROM && first.is_none() {
                first = Some(Size::of(&daemon, &guest));
            }
        }
        let (elapsed, polls, results) = (begun.elapsed().as_secs() as usize, liar.polls(), liar.results());
        let last = Size::of(&daemon, &guest);
        println!("{name}: {polls} polls and {results} results in {elapsed} s; {first:?}, then {last:?}");
        assert!(polls > 0);
        assert!(
            polls <= elapsed / 2 + results + 2,
            "{name}: {polls} polls, {results} results in {elapsed} s"
        );
        if let Some(first) = first {
            assert!(last.is_no_more_memory_than(&first), "{name}: {first:?} {last:?}");
        }
        assert_eq!(guest.snapshot(), before, "{name}");
        let log = fs::read_to_string(guest.path("sshd.log")).unwrap();
        assert!(!log.contains("SIGHUP"), "{name}: sshd was told of something: {log}");
        // Who he says that this is was taken for it, where nothing pins that: the service says it again.
        liar.steps_aside();
        drop(daemon);
        let _daemon = Daemon::start(&guest);
        metadata.queue(good());
        let result = metadata.wait_for_result(GOOD);
        assert_eq!(result["status"], "succeeded", "{name}: {result}");
    }
}

fn unsigned() -> Scene {
    let nothing = |_: &Guest| String::new();
    Scene::new("whom anybody may command", nothing, |guest| {
        let key = Key::new(&guest.folder, "k");
        let weak = with(attach("my-test", &key, "no"), "publicKey", json!("ssh-rsa AAAA"));
        let name = json!("../../../../x");
        // Spoilt too, none of them is one to obey.
        let pool = vec![
            queued("c-1", 1, weak.clone()),
            queued("c-2", 2, with(weak, "publicKey", json!("command=\"x\" ssh-ed25519 AAAA"))),
            queued("c-3", 3, set_password_auth("maybe")),
            queued("c-4", 4, detach("my-test")),
            queued("c-5", 5, with(attach("my-test", &key, "no"), "keyName", name.clone())),
            with(queued("c-6", 6, attach("my-test", &key, "no")), "commandId", name),
            json!({ "payload": "e30=", "signature": "-----BEGIN SSH SIGNATURE-----" }),
        ];
        (pool, Box::new(move || queued(GOOD, LAST, attach("my-test", &key, "no"))))
    })
}

/// A command that lasts as long as the lies.
fn lasting(id: &str, sequence: u64, command: Value) -> Value {
    expiring(time::Duration::hours(20), id, sequence, command)
}

fn must_be_signed() -> Scene {
    // Who he says this is counts for nothing then.
    let agent = |guest: &Guest| {
        let trusted = guest.path("allowed_signers");
        format!("instance_id = \"i-test\"\ntrusted_signers = \"{}\"", trusted.display())
    };
    Scene::new("whose commands must be signed", agent, |guest| {
        let (key, platform) = (Key::new(&guest.folder, "k"), Key::new(&guest.folder, "platform"));
        fs::write(guest.path("allowed_signers"), format!("platform {}\n", platform.line)).unwrap();
        let bind = || attach("my-test", &key, "no");
        let elsewhere = with(lasting("c-1", 1, bind()), "instanceId", json!("i-other"));
        let genuine = signed(&platform, &lasting("c-2", 2, bind()));
        let payload = lasting("c-3", 3, bind()).to_string().into_bytes();
        let pool = vec![
            lasting("c-4", 4, bind()),
            lasting("c-5", 5, set_password_auth("no")),
            signed(&key, &lasting("c-6", 6, bind())),
            signed(&platform, &elsewhere),
            signed(&platform, &expiring(-time::Duration::MINUTE, "c-7", 7, bind())),
            signed(&platform, &expiring(time::Duration::hours(30), "c-8", 8, bind())),
            signed(&platform, &queued("c-9", 9, bind())),
            envelope(&payload, genuine["signature"].as_str().unwrap()),
        ];
        let good = move || signed(&platform, &lasting(GOOD, LAST, attach("my-test", &key, "no")));
        (pool, Box::new(good))
    })
}

#[test]
fn hours_of_lies() {
    if !available(&["sshd", "ssh", "ssh-keygen"]) {
        return;
    }
    let time = Duration::from_secs(number(TIME, SHORT));
    println!("{SEED}={}", number(SEED, 7));
    thread::scope(|scope| {
        scope.spawn(|| unsigned().lives_through_it(time));
        scope.spawn(|| must_be_signed().lives_through_it(time));
    });
}
