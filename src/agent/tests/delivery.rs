//! Results: delivered before anything else is asked for, until there is a final answer.

use super::fakes::*;
use crate::channel::state::Phase;
use crate::channel::{ChannelError, Polled, Stored};
use crate::transaction::perform::{Answered, Performed};

fn stores(world: &World, answers: impl IntoIterator<Item = Result<Stored, ChannelError>>) {
    world
        .service
        .store
        .borrow_mut()
        .extend(answers.into_iter().map(|answer| (std::time::Duration::ZERO, answer)));
}

/// KP-3.8, KP-3.9.
#[tokio::test(start_paused = true)]
async fn no_answer_is_tried_again_before_the_next_command() {
    let world = World::new();
    stores(&world, [status(503), Err(ChannelError::Refused), status(302), status(429), Ok(Stored::Accepted)]);
    let ran = world.polls([command("c-1")]).for_seconds(20).await;
    assert_eq!(ran.diary.times("store c-1 result-c-1"), [0, 1000, 3000, 7000, 15_000]);
    assert_eq!(ran.diary.times("next"), [0, 15_000]);
    assert_eq!(ran.diary.count("delivered"), 1);
    assert_eq!(ran.state.state, Phase::Polling);
}

#[tokio::test(start_paused = true)]
async fn a_failing_delivery_is_seen_by_status() {
    let world = World::new();
    stores(&world, (0..9).map(|_| Err(ChannelError::Refused)));
    let ran = world.polls([command("c-1")]).for_seconds(5).await;
    assert_eq!(ran.state.state, Phase::Failing);
    assert!(ran.state.failure.unwrap().starts_with("delivering a result: "));
    // The last poll itself did succeed.
    assert_eq!(ran.state.last_poll_succeeded, Some(true));
}

/// KP-3.9.
#[tokio::test(start_paused = true)]
async fn final_answers_are_final() {
    for answer in [Stored::Accepted, Stored::Unknown, Stored::Conflict, Stored::Refused(403)] {
        let world = World::new();
        stores(&world, [Ok(answer)]);
        let diary = world.polls([command("c-1")]).for_seconds(1).await.diary;
        assert_eq!((diary.count("store"), diary.count("delivered c-1")), (1, 1), "{answer:?}");
        assert_eq!(diary.times("next"), [0, 0]);
    }
}

/// A whole result, with a warning.
const WHOLE: &str = r#"{"commandId": "c-1", "instanceId": "i-1", "action": "attach", "status": "succeeded", "code": "OK",
    "reason": null, "message": "as it is", "changed": true, "keyName": "my-test", "fingerprint": null, "user": "root",
    "authorizedKeysFile": null, "passWordAuth": "no", "effective": null, "proof": null,
    "warnings": [{"reason": "SECOND_SSHD", "message": "long", "file": null, "line": null}],
    "componentVersion": null, "agentVersion": "3.1.0", "finishedAt": "", "durationMs": 1}"#;

/// KP-3.10.
#[tokio::test(start_paused = true)]
async fn a_refused_form_is_followed_by_a_short_one() {
    for code in [400, 413] {
        for second in [Ok(Stored::Accepted), Ok(Stored::Refused(code)), Ok(Stored::Unknown)] {
            let mut world = World::new();
            let whole = Answered { result: WHOLE.to_owned(), ..result_of("c-1") };
            world.room.performed.push_back(Performed::Answered(whole));
            stores(&world, [Ok(Stored::Refused(code)), second]);
            let diary = world.polls([command("c-1"), command("c-2")]).for_seconds(1).await.diary;
            assert_eq!(diary.times("store c-1"), [0, 0]);
            let sent = diary
                .lines()
                .into_iter()
                .rev()
                .find_map(|line| line.strip_prefix("store c-1 ").map(str::to_owned));
            let short: serde_json::Value = serde_json::from_str(&sent.unwrap()).unwrap();
            assert_eq!(
                (short["status"].as_str(), short["keyName"].as_str()),
                (Some("succeeded"), Some("my-test"))
            );
            assert_eq!(short["warnings"], serde_json::json!([]));
            assert!(short["message"].as_str().unwrap().contains(&code.to_string()), "{short}");
            // It is kept before it is sent, and the queue goes on whatever becomes of it.
            assert!(diary.place("replace c-1") < diary.place("delivered c-1"));
            assert_eq!((diary.count("delivered c-1"), diary.count("delivered c-2")), (1, 1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_result_is_tried_again_as_any() {
    let mut world = World::new();
    let whole = Answered { result: WHOLE.to_owned(), ..result_of("c-1") };
    world.room.performed.push_back(Performed::Answered(whole));
    stores(&world, [Ok(Stored::Refused(413)), status(503), Ok(Stored::Accepted)]);
    let diary = world.polls([command("c-1")]).for_seconds(5).await.diary;
    assert_eq!(diary.times("store c-1"), [0, 0, 1000]);
    assert_eq!((diary.count("replace c-1"), diary.count("delivered c-1")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_not_recorded_is_delivered_from_memory() {
    let mut world = World::new();
    let unrecorded = Answered { recorded: false, changed: false, ..result_of("c-1") };
    world.room.performed.push_back(Performed::Answered(unrecorded));
    stores(&world, [status(500)]);
    let diary = world.polls([command("c-1")]).for_seconds(2).await.diary;
    assert_eq!(diary.times("store c-1 result-c-1"), [0, 1000]);
    assert_eq!(diary.count("delivered"), 0);
}

/// KP-3.11.
#[tokio::test(start_paused = true)]
async fn what_is_handed_out_again_after_a_final_answer_is_sent_once_and_waits() {
    for answer in [Ok(Stored::Accepted), Ok(Stored::Conflict), status(500)] {
        let world = World::new();
        stores(&world, [Ok(Stored::Conflict)].into_iter().chain((0..9).map(|_| answer.clone())));
        let ran = world.polls((0..5).map(|_| command("c-1"))).for_seconds(14).await;
        // Performed at once, then after 1, 2 and 4 s; each time the result goes out once.
        assert_eq!(ran.diary.times("perform"), [0, 0, 1000, 3000, 7000], "{answer:?}");
        assert_eq!(ran.diary.times("store"), ran.diary.times("perform"));
        assert_eq!(ran.state.state, Phase::Failing);
        assert_eq!(ran.state.last_poll_succeeded, Some(false));
        assert!(ran.state.failure.unwrap().contains("hands out c-1 again"));
    }
}

#[tokio::test(start_paused = true)]
async fn another_command_ends_that() {
    let polls = [command("c-1"), command("c-1"), command("c-2"), Ok(Polled::Nothing)];
    let ran = World::new().polls(polls).for_seconds(4).await;
    assert_eq!(ran.diary.times("perform"), [0, 0, 1000]);
    assert_eq!(ran.state.state, Phase::Polling);
}

/// What was answered before bore its id and did not count (KP-3.41).
#[tokio::test(start_paused = true)]
async fn a_new_command_whose_id_was_answered_before_is_no_failure() {
    let mut world = World::new();
    let refused = Answered { recorded: false, ..result_of("c-1") };
    let genuine = Answered { is_new: true, ..result_of("c-1") };
    world.room.performed.extend([refused, genuine].map(Performed::Answered));
    let ran = world.polls([command("c-1"), command("c-1")]).for_seconds(1).await;
    assert_eq!(ran.diary.times("store"), [0, 0]);
    assert_eq!((ran.diary.count("delivered c-1"), ran.state.state), (1, Phase::Polling));
}

#[tokio::test(start_paused = true)]
async fn a_repetition_whose_answer_is_not_known_to_be_final_is_no_failure() {
    let mut world = World::new();
    let repeated = Answered { changed: false, repeated: true, ..result_of("c-1") };
    world.room.performed.push_back(Performed::Answered(repeated));
    let ran = world.polls([command("c-1")]).for_seconds(1).await;
    assert_eq!(ran.diary.times("next"), [0, 0]);
    assert_eq!(ran.diary.count("store"), 1);
    assert_eq!(ran.state.state, Phase::Polling);
}
