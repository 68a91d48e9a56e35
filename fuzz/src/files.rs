//! What lies on the guest's disk: the component's version, authorized_keys, the state.

use std::path::Path;

use keypair_agent::policy::authorized_keys::{
    filter_admitting_lines, find_block_key_pair, parse_key_lines, render_key_block,
};
use keypair_agent::policy::command::KeyPair;
use keypair_agent::policy::component::ComponentVersion;
use keypair_agent::policy::edit::{FileEdit, FileKind, Inverse};
use keypair_agent::policy::public_key::PublicKey;
use keypair_agent::transaction::state::State;

use super::{TEST_KEY_LINE, assert_printable};

/// componentInfo.cfg (KP-2.2).
pub fn component(bytes: &[u8]) {
    match ComponentVersion::parse(bytes) {
        Err(why) => assert_printable(&why),
        Ok(version) => {
            let text = version.to_string();
            assert_printable(&text);
            let again = ComponentVersion::parse(text.as_bytes()).unwrap();
            assert_eq!(again.check_minimum_version().is_ok(), version.check_minimum_version().is_ok());
            if let Err(refusal) = version.check_minimum_version() {
                assert_printable(&refusal.message);
            }
        }
    }
}

fn test_key_pair() -> KeyPair {
    KeyPair { key_name: "my-test".parse().unwrap(), public_key: PublicKey::parse(TEST_KEY_LINE).unwrap() }
}

/// authorized_keys (KP-5.5): what is somebody else's stays, byte for byte, whatever stands there.
pub fn authorized_keys(bytes: &[u8]) {
    assert!(filter_admitting_lines(parse_key_lines(bytes)).count() <= parse_key_lines(bytes).count());
    if let Some(found) = find_block_key_pair(bytes) {
        assert_eq!(find_block_key_pair(&render_key_block(&found)), Some(found));
    }
    for known in [vec![], vec![test_key_pair().public_key]] {
        let kind = FileKind::AuthorizedKeys { user: "root".to_owned(), uid: None, known };
        check_block_round_trip(kind, bytes, render_key_block(&test_key_pair()));
    }
}

/// Our block is put in, and taken out, and both are taken back.
pub(crate) fn check_block_round_trip(kind: FileKind, bytes: &[u8], block: Vec<u8>) {
    let foreign = strip_managed_blocks(&kind, bytes);
    let path = Path::new("/f");
    if let Some(edit) = FileEdit::edit_block(path, kind.clone(), Some(bytes.to_vec().into()), block.clone()) {
        let after = edit.after.clone().unwrap();
        assert_eq!(*after, [block.as_slice(), foreign.as_slice()].concat());
        assert_eq!(edit.to_intent().inverse(Some(&after)), Inverse::Replace(bytes.to_vec()));
        assert_eq!(edit.to_intent().inverse(Some(bytes)), Inverse::Unchanged);
    }
    if let Some(edit) = FileEdit::edit_block(path, kind, Some(bytes.to_vec().into()), Vec::new()) {
        let after = edit.after.clone().unwrap();
        assert_eq!(*after, foreign);
        assert_eq!(edit.to_intent().inverse(Some(&after)), Inverse::Replace(bytes.to_vec()));
    }
}

fn strip_managed_blocks(kind: &FileKind, bytes: &[u8]) -> Vec<u8> {
    let mut kept = bytes.to_vec();
    for segment in kind.find_managed_segments(bytes).iter().rev() {
        let range = segment.offset..segment.offset + segment.bytes.len();
        assert_eq!(bytes[range.clone()], segment.bytes);
        kept.drain(range);
    }
    kept
}

/// The state file; one that somebody else wrote is no worse than a garbled one.
pub fn state(bytes: &[u8]) {
    let mut state = match State::parse(Some(bytes)) {
        Err(why) => return assert_printable(&why.to_string()),
        Ok(state) => state,
    };
    assert_eq!(State::parse(Some(&state.to_bounded_bytes().unwrap())), Ok(state.clone()));
    for file in state.intent.iter().flat_map(|intent| intent.key_files.iter().chain(&intent.sshd_files)) {
        for now in [
            None,
            Some(b"".as_slice()),
            Some(TEST_KEY_LINE.as_bytes()),
            Some(&render_key_block(&test_key_pair())),
            Some(bytes),
        ] {
            file.inverse(now);
        }
    }
    if let Some(intent) = &state.intent {
        state.count_interruption(&intent.command.id.clone());
    }
    state.adopt_instance_id(&"i-other".parse().unwrap(), None, false);
    state.forget();
    assert!(State::parse(Some(&state.to_bounded_bytes().unwrap())).is_ok());
}
