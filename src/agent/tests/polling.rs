//! Polls: their intervals, which answers count as failures, and what is logged.

use super::fakes::*;
use crate::channel::state::ChannelPhase;
use crate::channel::{ChannelError, Polled, UnusableResponse};
use crate::logging::capture::CapturedLog;
use crate::transaction::perform::Execution;

/// KP-3.12.
#[tokio::test(start_paused = true)]
async fn polls_start_two_seconds_apart() {
    // A service without long polls.
    let world = AgentFixture::new().with_polls((0..5).map(|_| Ok(Polled::NoCommand)));
    let diary = world.run_for_seconds(9).await.diary;
    assert_eq!(diary.times("next"), [0, 2000, 4000, 6000, 8000]);
    // A service with long polls is polled again at once.
    assert_eq!(
        AgentFixture::new().run_for_seconds(150).await.diary.times("next"),
        [0, 2000, 62_000, 122_000]
    );
}

/// KP-3.12.
#[tokio::test(start_paused = true)]
async fn next_poll_after_command_starts_at_once() {
    let diary = AgentFixture::new()
        .with_polls([polled_command("c-1"), polled_command("c-2"), polled_command("c-3")])
        .run_for_seconds(1)
        .await
        .diary;
    assert_eq!(diary.times("next"), [0, 0, 0, 0]);
}

/// KP-3.7, KP-3.13.
#[tokio::test(start_paused = true)]
async fn failed_polls_back_off_up_to_a_minute() {
    for failure in [
        Ok(Polled::NoQueue(None)),
        status_error(500),
        status_error(302),
        Err(ChannelError::ConnectionRefused),
        Err(ChannelError::Unusable(UnusableResponse::TooLarge)),
        Err(ChannelError::Disconnected { waited: SECOND }),
    ] {
        let polls =
            (0..9).map(|_| failure.clone()).chain([Ok(Polled::NoCommand), failure.clone(), failure.clone()]);
        let times = AgentFixture::new().with_polls(polls).run_for_seconds(300).await.diary.times("next");
        let pauses: Vec<_> = times.windows(2).map(|pair| (pair[1] - pair[0] + 500) / 1000).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60, 2, 1, 2], "{failure:?}");
    }
}

/// KP-3.7, KP-3.21.
#[tokio::test(start_paused = true)]
async fn unanswerable_command_counts_as_failed_poll() {
    let mut world = AgentFixture::new();
    world
        .room
        .performed
        .extend((0..3).map(|_| Execution::NotExecuted("the command has no commandId".into())));
    let ran = world.with_polls((0..3).map(|_| polled_command("x"))).run_for_seconds(2).await;
    assert_eq!(ran.diary.times("perform"), [0, 1000]);
    assert_eq!(ran.diary.count("store"), 0);
    assert_eq!(ran.state.last_poll_succeeded, Some(false));
    assert!(ran.state.failure.unwrap().contains("no commandId"));
}

/// KP-3.14.
#[tokio::test(start_paused = true)]
async fn retry_after_is_honoured() {
    let busy = Err(ChannelError::Status { status: 503, retry_after: Some(30 * SECOND) });
    // The agent adds a random delay of up to the same length. In these tests every random delay has its greatest
    // value.
    let times = AgentFixture::new().with_polls([busy]).run_for_seconds(70).await.diary.times("next");
    assert_eq!(times[..2], [0, 60_000]);
}

/// KP-3.15.
#[tokio::test(start_paused = true)]
async fn cut_long_poll_is_retried_within_half_a_minute() {
    let world = AgentFixture::new().with_polls([Ok(Polled::NoCommand)]);
    let cut = || Err(ChannelError::Disconnected { waited: 20 * SECOND });
    world.service.next.borrow_mut().extend([(20 * SECOND, cut()), (20 * SECOND, cut())]);
    let times = world.run_for_seconds(120).await.diary.times("next");
    // Disconnected at 22 s, polled again at 52 s, disconnected again at 72 s. Then the pause of any second failure.
    assert_eq!(times[..4], [0, 2000, 52_000, 74_000]);
}

/// Polls of a service that holds them. The first answer is empty and the second poll is held for its full time. Then
/// these answers follow; an empty one comes after half a minute.
fn with_held_polls(
    world: AgentFixture,
    polls: impl IntoIterator<Item = Result<Polled, ChannelError>>,
) -> AgentFixture {
    let world = world.with_polls([Ok(Polled::NoCommand)]);
    let first = (60 * SECOND, Ok(Polled::NoCommand));
    let polls = polls.into_iter().map(|polled| match polled {
        Ok(Polled::NoCommand) => (30 * SECOND, polled),
        _ => (SECOND, polled),
    });
    world.service.next.borrow_mut().extend([first].into_iter().chain(polls));
    world
}

/// KP-3.15, KP-3.37.
#[tokio::test(start_paused = true)]
async fn failing_long_poll_service_is_polled_once_a_minute() {
    for failure in [500, 503, 429] {
        let diary = with_held_polls(AgentFixture::new(), [status_error(failure), status_error(failure)])
            .run_for_seconds(700)
            .await
            .diary;
        // Held from 2 to 62 s. Then it fails twice, each time one second after the poll began.
        assert_eq!(diary.times("next")[1..5], [2000, 62_000, 123_000, 184_000]);
        // The service works again at 244 s. After five minutes, at a poll, the agent announces again what runs here.
        let told = diary.times("announce");
        assert!(matches!(told[..], [0, again] if (544_000..610_000).contains(&again)), "{told:?}");
    }
    // Answers that mean "not understood" or "somewhere else" change nothing about the pauses.
    for failure in [status_error(404), status_error(302)] {
        let diary =
            with_held_polls(AgentFixture::new(), [failure.clone(), failure]).run_for_seconds(200).await.diary;
        assert_eq!(diary.times("next")[1..5], [2000, 62_000, 64_000, 67_000]);
    }
}

#[tokio::test(start_paused = true)]
async fn cut_while_quiet_is_spread_and_second_cut_backs_off() {
    let cut = || Err(ChannelError::Disconnected { waited: SECOND });
    let diary = with_held_polls(AgentFixture::new(), [cut(), cut(), Ok(Polled::NoCommand)])
        .run_for_seconds(300)
        .await
        .diary;
    assert_eq!(diary.times("next")[1..5], [2000, 62_000, 93_000, 154_000]);
}

/// KP-3.15.
#[tokio::test(start_paused = true)]
async fn polls_after_outage_are_spread() {
    for failure in [
        ChannelError::ConnectionRefused,
        ChannelError::TimedOut(SECOND),
        ChannelError::Disconnected { waited: 70 * SECOND },
    ] {
        let first = if matches!(failure, ChannelError::Disconnected { .. }) { 30_000 } else { 1000 };
        let refused = || Err(ChannelError::ConnectionRefused);
        let polls = [Err(failure), refused(), refused(), Ok(Polled::NoCommand)];
        let times =
            with_held_polls(AgentFixture::new(), polls).run_for_seconds(400).await.diary.times("next");
        let again = 62_000 + 1000 + first;
        assert_eq!(times[2..6], [62_000, again, again + 61_000, again + 122_000]);
    }
}

/// KP-3.16.
#[tokio::test(start_paused = true)]
async fn synchronized_long_polls_are_desynchronized() {
    let refused = || Err(ChannelError::ConnectionRefused);
    let polls = [
        Ok(Polled::NoCommand),
        polled_command("c-1"),
        Ok(Polled::NoCommand),
        refused(),
        Ok(Polled::NoCommand),
        status_error(503),
    ];
    let mut world = AgentFixture::new();
    world.random = || u64::MAX / 2;
    let world = with_held_polls(world, polls);
    world.service.next.borrow_mut().push_back((30 * SECOND, status_error(503)));
    let diary = world.run_for_seconds(400).await.diary;
    let waits: Vec<_> = diary.lines().into_iter().filter(|line| line.starts_with("next")).collect();
    let expected = [
        // The start, a full poll, and a part after the first held poll.
        "next 0", "next 60", "next 30", //
        // A command, then a part of the time; a refused connection, then a part of the time.
        "next 60", "next 30", "next 60", "next 30", //
        // After an error at once, the agent keeps its own time. After an error on a held poll it shortens the next
        // one, because all agents got that error.
        "next 60", "next 60", "next 30",
    ];
    assert_eq!(waits[..10], expected);
}

#[tokio::test(start_paused = true)]
async fn change_is_announced_at_once_during_announce_spread() {
    let polls = [status_error(503), Ok(Polled::NoCommand), polled_command("c-1")];
    let diary = with_held_polls(AgentFixture::new(), polls).run_for_seconds(200).await.diary;
    let done = diary.times("store c-1")[0];
    assert_eq!(diary.times("announce"), [0, done + 500]);
}

#[tokio::test(start_paused = true)]
async fn status_shows_failure_and_recovery() {
    let refused = || Err(ChannelError::ConnectionRefused);
    let ran = AgentFixture::new()
        .with_polls([Ok(Polled::NoCommand), refused(), refused()])
        .run_for_seconds(4)
        .await;
    assert_eq!(ran.state.pid, std::process::id());
    assert_eq!(ran.state.state, ChannelPhase::Failing);
    assert_eq!(ran.state.last_poll_succeeded, Some(false));
    assert!(ran.state.last_poll_at.is_some() && ran.state.failing_since.is_some());
    assert!(ran.state.failure.unwrap().starts_with("asking for a command: connection refused"));
    let statuses = ran.diary.lines();
    assert!(statuses.iter().any(|line| line.starts_with("STATUS=bound my-test; channel failing: ")));
    let ran = AgentFixture::new().with_polls([refused(), Ok(Polled::NoCommand)]).run_for_seconds(2).await;
    assert_eq!((ran.state.state, ran.state.last_poll_succeeded), (ChannelPhase::Polling, Some(true)));
    assert_eq!((ran.state.failure, ran.state.failing_since), (None, None));
}

/// KP-3.19.
#[tokio::test(start_paused = true)]
async fn failure_is_logged_once_per_change() {
    let captured = CapturedLog::start_capture();
    let refused = || Err(ChannelError::ConnectionRefused);
    let polls = [
        refused(),
        refused(),
        refused(),
        status_error(500),
        status_error(500),
        Ok(Polled::NoCommand),
        Ok(Polled::NoCommand),
    ];
    AgentFixture::new().with_polls(polls).run_for_seconds(60).await;
    let lines = captured.lines();
    let channel: Vec<_> = lines.iter().filter(|line| line.contains("channel")).collect();
    // The channel works after the instance id, fails in two ways, and works again.
    assert_eq!(channel.len(), 4, "{channel:?}");
    assert!(channel[1].contains("refused") && channel[2].contains("500"), "{channel:?}");
}

/// KP-3.37.
#[tokio::test(start_paused = true)]
async fn announce_is_repeated_after_change_and_outage() {
    let polls = [
        Ok(Polled::NoCommand),
        Ok(Polled::NoCommand),
        polled_command("c-1"),
        Ok(Polled::NoCommand),
        status_error(500),
        Ok(Polled::NoCommand),
    ];
    let diary = AgentFixture::new().with_polls(polls).run_for_seconds(20).await.diary;
    // At the start, after a change, and after an outage.
    assert_eq!(diary.times("announce"), [0, 4000, 7000]);
    assert!(diary.times("next").contains(&6000));
}

#[tokio::test(start_paused = true)]
async fn change_is_announced_while_long_poll_waits() {
    let polls = [Ok(Polled::NoCommand), polled_command("c-1"), polled_command("c-2")];
    let diary = AgentFixture::new().with_polls(polls).run_for_seconds(30).await.diary;
    assert_eq!(diary.times("next"), [0, 2000, 2000, 2000]);
    // One announcement for both commands, when no third command followed at once.
    assert_eq!(diary.times("announce"), [0, 2500]);
}

/// KP-3.37.
#[tokio::test(start_paused = true)]
async fn hanging_announce_blocks_nothing() {
    let world = AgentFixture::new();
    world.service.announce.borrow_mut().push_back((10 * SECOND, Err(ChannelError::TimedOut(10 * SECOND))));
    world.service.announce.borrow_mut().push_back((10 * SECOND, status_error(403)));
    let diary =
        world.with_polls([Ok(Polled::NoCommand), polled_command("c-1")]).run_for_seconds(200).await.diary;
    assert_eq!(diary.times("perform"), [2000]);
    assert_eq!(diary.times("next"), [0, 2000, 2000, 62_000, 122_000, 182_000]);
    // Announced again with the next empty poll. A final answer ends it.
    assert_eq!(diary.times("announce"), [0, 62_000]);
}
