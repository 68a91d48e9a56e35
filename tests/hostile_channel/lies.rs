//! Hours of answers from a server that is not the metadata service. The daemon survives, needs no more memory, and
//! changes nothing in the guest. Afterwards the real service is reachable, and the daemon performs its command.
//!
//! An agent that requires signed commands gets valid commands without a signature, and captured ones with a
//! signature: for another instance, or expired. The other agent accepts commands from any server at the address, so
//! it gets everything except a command that it could perform.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::daemon::{Daemon, ProcessUsage, make_channel_command};
use crate::support::liar::FuzzingServer;
use crate::support::signing::{make_envelope, make_expiring_command, sign_command};
use crate::support::{
    GuestOptions, MetadataService, TestGuest, TestKey, attach_command, detach_command, has_tools,
    set_password_auth_command, with_field,
};
use serde_json::{Value, json};

/// The duration in seconds; `make test-hostile-answers` uses two hours.
const FUZZ_SECONDS_VAR: &str = "KEYPAIR_HOSTILE_ANSWERS";
const DEFAULT_FUZZ_SECONDS: u64 = 20;
/// The RNG seed of the answers; the test prints it.
const SEED: &str = "KEYPAIR_HOSTILE_SEED";
/// The genuine command, and its sequence: higher than any sequence from the fuzzing server.
const GENUINE_COMMAND_ID: &str = "good";
const GENUINE_SEQUENCE: u64 = (1 << 53) - 1;
/// The memory is compared after this number of polls. Before that, it grows to the need of one command after another.
const WARMUP_POLLS: usize = 200;

fn read_env_number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect(variable))
}

/// An agent with a fuzzing server, and the real service's command for the end of the test.
struct FuzzedAgent {
    name: &'static str,
    metadata: MetadataService,
    guest: TestGuest,
    liar: FuzzingServer,
    /// Created when it is sent, because its signature is valid for at most a day.
    good: Box<dyn FnOnce() -> Value + Send>,
}

/// Bodies that are close to a command, and the genuine command.
type CommandPool = (Vec<Value>, Box<dyn FnOnce() -> Value + Send>);

impl FuzzedAgent {
    /// `agent` returns the agent's configuration.
    fn new(
        name: &'static str,
        agent: impl FnOnce(&TestGuest) -> String,
        says: impl FnOnce(&TestGuest) -> CommandPool,
    ) -> Self {
        let metadata = MetadataService::start();
        let guest =
            TestGuest::with_options(GuestOptions { metadata: Some(&metadata), ..GuestOptions::default() });
        let (pool, good) = says(&guest);
        let pool = pool.iter().map(|value| value.to_string().into_bytes()).collect();
        let liar = FuzzingServer::start(&metadata, read_env_number(SEED, 7), pool);
        guest.write_agent_config(&agent(&guest), &liar.url());
        Self { name, metadata, guest, liar, good }
    }

    fn run_for(self, time: Duration) {
        let Self { name, metadata, guest, liar, good } = self;
        let before = guest.snapshot();
        let mut daemon = Daemon::start(&guest);
        let begun = Instant::now();
        let mut first = None;
        while begun.elapsed() < time {
            thread::sleep(Duration::from_millis(100));
            assert!(daemon.is_alive(), "{name}: {}", daemon.log());
            if liar.poll_count() >= WARMUP_POLLS && first.is_none() {
                first = Some(ProcessUsage::measure(&daemon, &guest));
            }
        }
        let (elapsed, polls, results) =
            (begun.elapsed().as_secs() as usize, liar.poll_count(), liar.result_count());
        let last = ProcessUsage::measure(&daemon, &guest);
        println!("{name}: {polls} polls and {results} results in {elapsed} s; {first:?}, then {last:?}");
        assert!(polls > 0);
        assert!(
            polls <= elapsed / 2 + results + 2,
            "{name}: {polls} polls, {results} results in {elapsed} s"
        );
        if let Some(first) = first {
            assert!(last.has_memory_within(&first), "{name}: {first:?} {last:?}");
        }
        assert_eq!(guest.snapshot(), before, "{name}");
        let log = fs::read_to_string(guest.path("sshd.log")).unwrap();
        assert!(!log.contains("SIGHUP"), "{name}: sshd was told of something: {log}");
        // Without a configured instance id, the agent has taken the one from the fuzzing server. After a restart it
        // learns the real one.
        liar.start_forwarding();
        drop(daemon);
        let _daemon = Daemon::start(&guest);
        metadata.queue(good());
        let result = metadata.wait_for_result(GENUINE_COMMAND_ID);
        assert_eq!(result["status"], "succeeded", "{name}: {result}");
    }
}

fn start_unsigned_agent() -> FuzzedAgent {
    let nothing = |_: &TestGuest| String::new();
    FuzzedAgent::new("whom anybody may command", nothing, |guest| {
        let key = TestKey::new(&guest.folder, "k");
        let weak = with_field(attach_command("my-test", &key, "no"), "publicKey", json!("ssh-rsa AAAA"));
        let name = json!("../../../../x");
        // The agent can perform none of these, not even after random changes of bytes.
        let pool = vec![
            make_channel_command("c-1", 1, weak.clone()),
            make_channel_command(
                "c-2",
                2,
                with_field(weak, "publicKey", json!("command=\"x\" ssh-ed25519 AAAA")),
            ),
            make_channel_command("c-3", 3, set_password_auth_command("maybe")),
            make_channel_command("c-4", 4, detach_command("my-test")),
            make_channel_command(
                "c-5",
                5,
                with_field(attach_command("my-test", &key, "no"), "keyName", name.clone()),
            ),
            with_field(
                make_channel_command("c-6", 6, attach_command("my-test", &key, "no")),
                "commandId",
                name,
            ),
            json!({ "payload": "e30=", "signature": "-----BEGIN SSH SIGNATURE-----" }),
        ];
        (
            pool,
            Box::new(move || {
                make_channel_command(
                    GENUINE_COMMAND_ID,
                    GENUINE_SEQUENCE,
                    attach_command("my-test", &key, "no"),
                )
            }),
        )
    })
}

/// A command that does not expire during the fuzzing.
fn make_long_lived_command(id: &str, sequence: u64, command: Value) -> Value {
    make_expiring_command(time::Duration::hours(20), id, sequence, command)
}

fn start_signed_agent() -> FuzzedAgent {
    // The configured instance id takes precedence over the fuzzing server's.
    let agent = |guest: &TestGuest| {
        let trusted = guest.path("allowed_signers");
        format!("instance_id = \"i-test\"\ntrusted_signers = \"{}\"", trusted.display())
    };
    FuzzedAgent::new("whose commands must be signed", agent, |guest| {
        let (key, platform) = (TestKey::new(&guest.folder, "k"), TestKey::new(&guest.folder, "platform"));
        fs::write(guest.path("allowed_signers"), format!("platform {}\n", platform.line)).unwrap();
        let bind = || attach_command("my-test", &key, "no");
        let elsewhere = with_field(make_long_lived_command("c-1", 1, bind()), "instanceId", json!("i-other"));
        let genuine = sign_command(&platform, &make_long_lived_command("c-2", 2, bind()));
        let payload = make_long_lived_command("c-3", 3, bind()).to_string().into_bytes();
        let pool = vec![
            make_long_lived_command("c-4", 4, bind()),
            make_long_lived_command("c-5", 5, set_password_auth_command("no")),
            sign_command(&key, &make_long_lived_command("c-6", 6, bind())),
            sign_command(&platform, &elsewhere),
            sign_command(&platform, &make_expiring_command(-time::Duration::MINUTE, "c-7", 7, bind())),
            sign_command(&platform, &make_expiring_command(time::Duration::hours(30), "c-8", 8, bind())),
            sign_command(&platform, &make_channel_command("c-9", 9, bind())),
            make_envelope(&payload, genuine["signature"].as_str().unwrap()),
        ];
        let good = move || {
            sign_command(
                &platform,
                &make_long_lived_command(
                    GENUINE_COMMAND_ID,
                    GENUINE_SEQUENCE,
                    attach_command("my-test", &key, "no"),
                ),
            )
        };
        (pool, Box::new(good))
    })
}

#[test]
fn daemon_survives_random_responses() {
    if !has_tools(&["sshd", "ssh", "ssh-keygen"]) {
        return;
    }
    let time = Duration::from_secs(read_env_number(FUZZ_SECONDS_VAR, DEFAULT_FUZZ_SECONDS));
    println!("{SEED}={}", read_env_number(SEED, 7));
    thread::scope(|scope| {
        scope.spawn(|| start_unsigned_agent().run_for(time));
        scope.spawn(|| start_signed_agent().run_for(time));
    });
}
