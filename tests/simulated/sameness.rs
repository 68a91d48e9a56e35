//! Equality of two states, for an explorer that continues from only one of them.

use std::hash::{Hash, Hasher};

use super::disk::STATE_FILE;
use super::world::{AgentState, Simulation};

/// Two states are equal if everything except their times is equal. The number of tries of a command shows only in
/// timestamps, and the agent never reads those back. Whether two results of one command have the same bytes is
/// checked on the way to a state, not by a comparison of states.
impl Hash for Simulation {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self {
            machine,
            agent,
            control_plane,
            left,
            known,
            running_at_rest,
            open,
            tries: _,
            is_late,
            parsed: _,
        } = self;
        (machine.disk.hashable_environment(), machine.rest.hashable_environment()).hash(hasher);
        for (path, content) in machine.disk.hashable_entries() {
            path.hash(hasher);
            hash_without_timestamps(content, hasher);
        }
        0xff_u8.hash(hasher);
        for (path, content) in
            machine.rest.hashable_entries().filter(|(path, _)| path.as_os_str() != STATE_FILE)
        {
            path.hash(hasher);
            hash_without_timestamps(content, hasher);
        }
        (
            &machine.running,
            machine.component,
            machine.edited,
            machine.setting_taken_midway,
            &machine.violation,
        )
            .hash(hasher);
        match agent {
            AgentState::Down => 0_u8.hash(hasher),
            AgentState::Up { due, settled } => {
                (1_u8, settled).hash(hasher);
                if let Some(due) = due {
                    (&due.id, due.recorded).hash(hasher);
                    hash_without_timestamps(due.result.as_bytes(), hasher);
                }
            }
        }
        (&control_plane.orders, control_plane.instance, control_plane.first_expires_at).hash(hasher);
        for (id, result) in control_plane.results.iter().chain(&known.seen) {
            id.hash(hasher);
            hash_without_timestamps(result.as_bytes(), hasher);
        }
        (known.bound, &known.highest, &known.interrupted, &known.unrecorded, &known.fleeting).hash(hasher);
        known.instance.hash(hasher);
        (left, running_at_rest, open, is_late).hash(hasher);
    }
}

/// The first characters of a timestamp in this simulation, and the length of a timestamp.
const TIMESTAMP_PREFIX: &[u8] = b"2026-12-";
const TIMESTAMP_LENGTH: usize = "2026-12-01T00:00:00Z".len();

fn hash_without_timestamps<H: Hasher>(content: &[u8], hasher: &mut H) {
    let mut from = 0;
    let mut at = 0;
    while let Some(dash) = content[at..].iter().position(|byte| *byte == TIMESTAMP_PREFIX[4]) {
        let begin = (at + dash).saturating_sub(4);
        at += dash + 1;
        if content[begin..].starts_with(TIMESTAMP_PREFIX) && begin >= from {
            content[from..begin].hash(hasher);
            from = (begin + TIMESTAMP_LENGTH).min(content.len());
            at = from;
        }
    }
    content[from..].hash(hasher);
}

/// Uses the same definition of equality as the hash.
impl PartialEq for Simulation {
    fn eq(&self, other: &Self) -> bool {
        let hash = |world: &Self| {
            let mut hasher = std::hash::DefaultHasher::new();
            world.hash(&mut hasher);
            hasher.finish()
        };
        hash(self) == hash(other)
    }
}
