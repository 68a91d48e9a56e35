//! Results: the agent delivers them before its next poll, until a final answer comes.

use super::fakes::*;
use crate::channel::state::ChannelPhase;
use crate::channel::{ChannelError, Polled, StoreResponse};
use crate::transaction::perform::{CompletedCommand, Execution};

fn script_store_answers(
    world: &AgentFixture,
    answers: impl IntoIterator<Item = Result<StoreResponse, ChannelError>>,
) {
    world
        .service
        .store
        .borrow_mut()
        .extend(answers.into_iter().map(|answer| (std::time::Duration::ZERO, answer)));
}

/// KP-3.8, KP-3.9.
#[tokio::test(start_paused = true)]
async fn failed_delivery_is_retried_before_next_poll() {
    let world = AgentFixture::new();
    script_store_answers(
        &world,
        [
            status_error(503),
            Err(ChannelError::ConnectionRefused),
            status_error(302),
            status_error(429),
            Ok(StoreResponse::Accepted),
        ],
    );
    let ran = world.with_polls([polled_command("c-1")]).run_for_seconds(20).await;
    assert_eq!(ran.diary.times("store c-1 result-c-1"), [0, 1000, 3000, 7000, 15_000]);
    assert_eq!(ran.diary.times("next"), [0, 15_000]);
    assert_eq!(ran.diary.count("delivered"), 1);
    assert_eq!(ran.state.state, ChannelPhase::Polling);
}

#[tokio::test(start_paused = true)]
async fn failing_delivery_is_shown_by_status() {
    let world = AgentFixture::new();
    script_store_answers(&world, (0..9).map(|_| Err(ChannelError::ConnectionRefused)));
    let ran = world.with_polls([polled_command("c-1")]).run_for_seconds(5).await;
    assert_eq!(ran.state.state, ChannelPhase::Failing);
    assert!(ran.state.failure.unwrap().starts_with("delivering a result: "));
    // The last poll itself succeeded.
    assert_eq!(ran.state.last_poll_succeeded, Some(true));
}

/// KP-3.9.
#[tokio::test(start_paused = true)]
async fn final_store_answers_are_not_retried() {
    for answer in [
        StoreResponse::Accepted,
        StoreResponse::Unknown,
        StoreResponse::Conflict,
        StoreResponse::Refused(403),
    ] {
        let world = AgentFixture::new();
        script_store_answers(&world, [Ok(answer)]);
        let diary = world.with_polls([polled_command("c-1")]).run_for_seconds(1).await.diary;
        assert_eq!((diary.count("store"), diary.count("delivered c-1")), (1, 1), "{answer:?}");
        assert_eq!(diary.times("next"), [0, 0]);
    }
}

/// A complete result with a warning.
const FULL_RESULT: &str = r#"{"commandId": "c-1", "instanceId": "i-1", "action": "attach", "status": "succeeded", "code": "OK",
    "reason": null, "message": "as it is", "changed": true, "keyName": "my-test", "fingerprint": null, "user": "root",
    "authorizedKeysFile": null, "passWordAuth": "no", "effective": null, "proof": null,
    "warnings": [{"reason": "SECOND_SSHD", "message": "long", "file": null, "line": null}],
    "componentVersion": null, "agentVersion": "3.1.0", "finishedAt": "", "durationMs": 1}"#;

/// KP-3.10.
#[tokio::test(start_paused = true)]
async fn refused_result_is_replaced_by_short_one() {
    for code in [400, 413] {
        for second in
            [Ok(StoreResponse::Accepted), Ok(StoreResponse::Refused(code)), Ok(StoreResponse::Unknown)]
        {
            let mut world = AgentFixture::new();
            let whole = CompletedCommand { result: FULL_RESULT.to_owned(), ..completed_command("c-1") };
            world.room.performed.push_back(Execution::Completed(whole));
            script_store_answers(&world, [Ok(StoreResponse::Refused(code)), second]);
            let diary = world
                .with_polls([polled_command("c-1"), polled_command("c-2")])
                .run_for_seconds(1)
                .await
                .diary;
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
            // The short result is stored before it is sent. The queue continues whatever the service answers.
            assert!(diary.first_index("replace c-1") < diary.first_index("delivered c-1"));
            assert_eq!((diary.count("delivered c-1"), diary.count("delivered c-2")), (1, 1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn short_result_is_retried_like_any_other() {
    let mut world = AgentFixture::new();
    let whole = CompletedCommand { result: FULL_RESULT.to_owned(), ..completed_command("c-1") };
    world.room.performed.push_back(Execution::Completed(whole));
    script_store_answers(
        &world,
        [Ok(StoreResponse::Refused(413)), status_error(503), Ok(StoreResponse::Accepted)],
    );
    let diary = world.with_polls([polled_command("c-1")]).run_for_seconds(5).await.diary;
    assert_eq!(diary.times("store c-1"), [0, 0, 1000]);
    assert_eq!((diary.count("replace c-1"), diary.count("delivered c-1")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn unrecorded_result_is_delivered_from_memory() {
    let mut world = AgentFixture::new();
    let unrecorded = CompletedCommand { recorded: false, changed: false, ..completed_command("c-1") };
    world.room.performed.push_back(Execution::Completed(unrecorded));
    script_store_answers(&world, [status_error(500)]);
    let diary = world.with_polls([polled_command("c-1")]).run_for_seconds(2).await.diary;
    assert_eq!(diary.times("store c-1 result-c-1"), [0, 1000]);
    assert_eq!(diary.count("delivered"), 0);
}

/// KP-3.11.
#[tokio::test(start_paused = true)]
async fn redelivered_command_gets_result_once_then_backs_off() {
    for answer in [Ok(StoreResponse::Accepted), Ok(StoreResponse::Conflict), status_error(500)] {
        let world = AgentFixture::new();
        script_store_answers(
            &world,
            [Ok(StoreResponse::Conflict)].into_iter().chain((0..9).map(|_| answer.clone())),
        );
        let ran = world.with_polls((0..5).map(|_| polled_command("c-1"))).run_for_seconds(14).await;
        // The command is performed at once, then after 1, 2 and 4 s. Each time, the result is sent once.
        assert_eq!(ran.diary.times("perform"), [0, 0, 1000, 3000, 7000], "{answer:?}");
        assert_eq!(ran.diary.times("store"), ran.diary.times("perform"));
        assert_eq!(ran.state.state, ChannelPhase::Failing);
        assert_eq!(ran.state.last_poll_succeeded, Some(false));
        assert!(ran.state.failure.unwrap().contains("hands out c-1 again"));
    }
}

#[tokio::test(start_paused = true)]
async fn redelivery_backoff_ends_with_another_command() {
    let polls = [polled_command("c-1"), polled_command("c-1"), polled_command("c-2"), Ok(Polled::NoCommand)];
    let ran = AgentFixture::new().with_polls(polls).run_for_seconds(4).await;
    assert_eq!(ran.diary.times("perform"), [0, 0, 1000]);
    assert_eq!(ran.state.state, ChannelPhase::Polling);
}

/// The earlier command had the same id and was not recorded as seen (KP-3.41).
#[tokio::test(start_paused = true)]
async fn new_command_with_answered_id_is_no_failure() {
    let mut world = AgentFixture::new();
    let refused = CompletedCommand { recorded: false, ..completed_command("c-1") };
    let genuine = CompletedCommand { is_new: true, ..completed_command("c-1") };
    world.room.performed.extend([refused, genuine].map(Execution::Completed));
    let ran = world.with_polls([polled_command("c-1"), polled_command("c-1")]).run_for_seconds(1).await;
    assert_eq!(ran.diary.times("store"), [0, 0]);
    assert_eq!((ran.diary.count("delivered c-1"), ran.state.state), (1, ChannelPhase::Polling));
}

#[tokio::test(start_paused = true)]
async fn repeated_result_not_yet_final_is_no_failure() {
    let mut world = AgentFixture::new();
    let repeated = CompletedCommand { changed: false, repeated: true, ..completed_command("c-1") };
    world.room.performed.push_back(Execution::Completed(repeated));
    let ran = world.with_polls([polled_command("c-1")]).run_for_seconds(1).await;
    assert_eq!(ran.diary.times("next"), [0, 0]);
    assert_eq!(ran.diary.count("store"), 1);
    assert_eq!(ran.state.state, ChannelPhase::Polling);
}
