//! What comes over the channel: commands, envelopes, answers of HTTP.

use std::path::Path;
use std::time::Duration;

use keypair_agent::channel::http::HttpChannel;
use keypair_agent::channel::{Channel, ChannelError, Polled};
use keypair_agent::policy::allowed_signers::AllowedSigners;
use keypair_agent::policy::authorized_keys;
use keypair_agent::policy::command::{Action, Origin, ReceivedCommand, parse_command};
use keypair_agent::policy::local_time::LocalTimeZone;
use keypair_agent::policy::signature::{Envelope, SignatureCheck};
use keypair_agent::policy::types::CommandId;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::assert_printable;

fn console_id() -> CommandId {
    "console".parse().unwrap()
}

/// A command's bytes (KP-3.20).
pub fn command(bytes: &[u8]) {
    for origin in [Origin::Channel, Origin::Console] {
        match parse_command(bytes, origin, &console_id()) {
            Err(why) => assert_printable(&why.to_string()),
            Ok(received) => check_received(&received, origin),
        }
    }
}

fn check_received(received: &ReceivedCommand, origin: Origin) {
    let command = match &received.command {
        Err(refusal) => return assert_printable(&refusal.message),
        Ok(command) => command,
    };
    assert_eq!(command.id, received.id);
    assert!(origin == Origin::Console || command.sequence.is_some() && command.instance_id.is_some());
    // What it says of itself is the same command.
    let told = serde_json::to_vec(command).unwrap();
    let again = parse_command(&told, origin, &console_id()).unwrap();
    assert_eq!(again.command.as_ref().unwrap(), command);
    if let Action::Attach { key_pair, .. } = &command.action {
        let block = authorized_keys::render_key_block(key_pair);
        assert_eq!(block.iter().filter(|byte| **byte == b'\n').count(), 3);
        assert_eq!(authorized_keys::find_block_key_pair(&block).as_ref(), Some(key_pair));
    }
    if let Some(envelope) = &received.envelope {
        let bare = parse_command(&envelope.payload, origin, &console_id()).unwrap();
        assert_eq!(bare.command.as_ref().unwrap(), command);
    }
}

/// Who may sign. The private half is kept nowhere.
const ALLOWED_SIGNERS: &str = include_str!("../genuine/allowed_signers");

/// All that he ever signed as a command.
const SIGNED_PAYLOAD: &[u8] = include_bytes!("../genuine/payload");

/// Whether this envelope counts.
pub fn is_valid_envelope(bytes: &[u8]) -> bool {
    let Ok(ReceivedCommand { envelope: Some(envelope), .. }) =
        parse_command(bytes, Origin::Channel, &console_id())
    else {
        return false;
    };
    has_valid_signature(&envelope)
}

fn has_valid_signature(envelope: &Envelope) -> bool {
    let trusted = AllowedSigners::parse(
        ALLOWED_SIGNERS.as_bytes(),
        Path::new("/s"),
        &LocalTimeZone::from_localtime(None),
    )
    .unwrap();
    match envelope.verify_signature(&trusted, Some(OffsetDateTime::UNIX_EPOCH)) {
        SignatureCheck::Valid => true,
        SignatureCheck::TimeNeeded => panic!("no signer's time is bounded"),
        SignatureCheck::Invalid(why) => {
            assert_printable(&why);
            false
        }
    }
}

/// An envelope as it comes, and a signature's text by itself.
pub fn envelope(bytes: &[u8]) {
    if let Ok(ReceivedCommand { envelope: Some(envelope), .. }) =
        parse_command(bytes, Origin::Channel, &console_id())
    {
        assert!(
            !has_valid_signature(&envelope) || envelope.payload == SIGNED_PAYLOAD,
            "a forged signature counts"
        );
    }
    let signature = String::from_utf8_lossy(bytes).into_owned();
    assert!(
        !has_valid_signature(&Envelope { payload: b"{}".to_vec(), signature }),
        "a forged signature counts"
    );
}

/// The most of an answer's body that is taken (KP-3.4).
const MAX_BODY_BYTES: usize = 64 * 1024;

/// What the metadata service answers: to which question, says the first byte.
pub fn http(bytes: &[u8]) {
    let Some((first, answer)) = bytes.split_first() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/metadata/latest", listener.local_addr().unwrap()).parse().unwrap();
        let channel = HttpChannel::new(base);
        let serves = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            // The whole question: a connection closed upon unread bytes would take the answer with it.
            while !is_complete_request(&asked) && stream.read_buf(&mut asked).await.is_ok_and(|read| read > 0)
            {
            }
            // Whoever asked may have heard enough.
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut asked).await;
        };
        let asks = async {
            let failed = match first % 4 {
                0 => channel.fetch_instance_id().await.map(drop),
                1 => channel.poll_command(Duration::ZERO).await.map(|polled| {
                    if let Polled::Command(delivery) = polled {
                        assert!(delivery.bytes.len() <= MAX_BODY_BYTES);
                    }
                }),
                2 => channel.store_result(&console_id(), "{}").await.map(drop),
                _ => channel.announce("{}").await,
            };
            if let Err(error) = failed {
                assert!(!matches!(error, ChannelError::TimedOut(_)), "it waits for more");
                assert_printable(&error.to_string());
            }
        };
        tokio::join!(serves, asks);
    });
}

/// Whether a question has come as a whole: a GET, or a PUT of `{}`.
fn is_complete_request(asked: &[u8]) -> bool {
    asked.ends_with(b"\r\n\r\n") && asked.starts_with(b"GET") || asked.ends_with(b"\r\n\r\n{}")
}
