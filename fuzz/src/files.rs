//! What lies on the guest's disk: the component's version, authorized_keys, the state.

use std::path::Path;

use keypair_agent::policy::authorized_keys::{key_lines, render, standing, ways_in};
use keypair_agent::policy::command::KeyPair;
use keypair_agent::policy::component::ComponentVersion;
use keypair_agent::policy::edit::{FileEdit, FileKind, Inverse};
use keypair_agent::policy::public_key::PublicKey;
use keypair_agent::transaction::state::State;

use super::{KEY, is_fit_to_print};

/// componentInfo.cfg (KP-2.2).
pub fn component(bytes: &[u8]) {
    match ComponentVersion::parse(bytes) {
        Err(why) => is_fit_to_print(&why),
        Ok(version) => {
            let text = version.to_string();
            is_fit_to_print(&text);
            let again = ComponentVersion::parse(text.as_bytes()).unwrap();
            assert_eq!(again.gate().is_ok(), version.gate().is_ok());
            if let Err(refusal) = version.gate() {
                is_fit_to_print(&refusal.message);
            }
        }
    }
}

fn pair() -> KeyPair {
    KeyPair { key_name: "my-test".parse().unwrap(), public_key: PublicKey::parse(KEY).unwrap() }
}

/// authorized_keys (KP-5.5): what is somebody else's stays, byte for byte, whatever stands there.
pub fn authorized_keys(bytes: &[u8]) {
    assert!(ways_in(key_lines(bytes)).count() <= key_lines(bytes).count());
    if let Some(found) = standing(bytes) {
        assert_eq!(standing(&render(&found)), Some(found));
    }
    for known in [vec![], vec![pair().public_key]] {
        let kind = FileKind::AuthorizedKeys { user: "root".to_owned(), uid: None, known };
        there_and_back(kind, bytes, render(&pair()));
    }
}

/// Our block is put in, and taken out, and both are taken back.
pub(crate) fn there_and_back(kind: FileKind, bytes: &[u8], block: Vec<u8>) {
    let foreign = without_ours(&kind, bytes);
    let path = Path::new("/f");
    if let Some(edit) = FileEdit::block(path, kind.clone(), Some(bytes.to_vec().into()), block.clone()) {
        let after = edit.after.clone().unwrap();
        assert_eq!(*after, [block.as_slice(), foreign.as_slice()].concat());
        assert_eq!(edit.intent().inverse(Some(&after)), Inverse::Replace(bytes.to_vec()));
        assert_eq!(edit.intent().inverse(Some(bytes)), Inverse::Nothing);
    }
    if let Some(edit) = FileEdit::block(path, kind, Some(bytes.to_vec().into()), Vec::new()) {
        let after = edit.after.clone().unwrap();
        assert_eq!(*after, foreign);
        assert_eq!(edit.intent().inverse(Some(&after)), Inverse::Replace(bytes.to_vec()));
    }
}

fn without_ours(kind: &FileKind, bytes: &[u8]) -> Vec<u8> {
    let mut kept = bytes.to_vec();
    for segment in kind.ours(bytes).iter().rev() {
        let range = segment.offset..segment.offset + segment.bytes.len();
        assert_eq!(bytes[range.clone()], segment.bytes);
        kept.drain(range);
    }
    kept
}

/// The state file; one that somebody else wrote is no worse than a garbled one.
pub fn state(bytes: &[u8]) {
    let mut state = match State::parse(Some(bytes)) {
        Err(why) => return is_fit_to_print(&why.to_string()),
        Ok(state) => state,
    };
    assert_eq!(State::parse(Some(&state.kept_bytes().unwrap())), Ok(state.clone()));
    for file in state.intent.iter().flat_map(|intent| intent.key_files.iter().chain(&intent.sshd_files)) {
        for now in [None, Some(b"".as_slice()), Some(KEY.as_bytes()), Some(&render(&pair())), Some(bytes)] {
            file.inverse(now);
        }
    }
    if let Some(intent) = &state.intent {
        state.count_interruption(&intent.command.id.clone());
    }
    state.adopt(&"i-other".parse().unwrap(), None, false);
    state.forget();
    assert!(State::parse(Some(&state.kept_bytes().unwrap())).is_ok());
}
