//! Calls that are answered together: whatever waits at a moment is one piece of work. A burst of thousands (an attach wakes the
//! poll of every guest) queues up here and costs a few statements, where each alone would wait for a connection, in vain
//! when it is the last; and a call that comes alone is answered at once.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Duration, timeout};

use super::database::Database;
use super::rows::MAX_ROWS_PER_STATEMENT;
use crate::store::StoreError;

/// How many pieces of work are under way.
const BATCH_WORKERS: usize = 4;
/// How long an answer is waited for, and a piece of work: agents give a call 10 s, and what comes later is for nobody.
const BATCH_TIMEOUT: Duration = Duration::from_secs(9);
/// How many may wait; each holds up to 64 KiB.
const MAX_PENDING_REQUESTS: usize = 50_000;

/// What is said to each of those who ask, or why nothing is said to any.
pub(super) type BatchResults<Resp> = Result<Vec<Result<Resp, StoreError>>, StoreError>;

type PendingRequest<Req, Resp> = (Req, oneshot::Sender<Result<Resp, StoreError>>);

/// Where to ask. The work ends with it.
pub(super) struct Batcher<Req, Resp> {
    waiting: mpsc::Sender<PendingRequest<Req, Resp>>,
    late: fn(String) -> StoreError,
}

impl<Req: Send + 'static, Resp: Send + 'static> Batcher<Req, Resp> {
    /// What is asked is answered by `work`, in the order it is given; where that is too late, by `late`.
    pub(super) fn new<F>(
        database: &Arc<Database>,
        work: impl Fn(Arc<Database>, Vec<Req>) -> F + Copy + Send + 'static,
        late: fn(String) -> StoreError,
    ) -> Self
    where
        F: Future<Output = BatchResults<Resp>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(MAX_PENDING_REQUESTS);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..BATCH_WORKERS {
            let (database, receiver) = (database.clone(), receiver.clone());
            tokio::spawn(async move {
                while let Some((asks, who)) = next_batch(&receiver).await {
                    // What is late goes on to its end: a transaction that is dropped half way would stay open.
                    let work = tokio::spawn(work(database.clone(), asks));
                    let answers = match timeout(BATCH_TIMEOUT, work).await {
                        Ok(Ok(answers)) => answers,
                        Ok(Err(error)) => Err(late(error.to_string())),
                        Err(_) => Err(late(timeout_message())),
                    };
                    send_responses(who, answers);
                }
            });
        }
        Self { waiting: sender, late }
    }

    /// Asks, and waits for the answer; who goes away meanwhile leaves no work half done.
    pub(super) async fn submit(&self, ask: Req) -> Result<Resp, StoreError> {
        let (sender, said) = oneshot::channel();
        let unheard = |why: &str| (self.late)(why.to_owned());
        self.waiting.try_send((ask, sender)).map_err(|_| unheard("too many wait for it"))?;
        let said = timeout(BATCH_TIMEOUT, said).await.map_err(|_| unheard(&timeout_message()))?;
        said.map_err(|_| unheard("its work has ended"))?
    }
}

fn timeout_message() -> String {
    format!("not done within {} s", BATCH_TIMEOUT.as_secs())
}

type Batch<Req, Resp> = (Vec<Req>, Vec<oneshot::Sender<Result<Resp, StoreError>>>);

/// All that waits now, or else the first that will; `None` where nobody can ask any more.
async fn next_batch<Req, Resp>(
    receiver: &Mutex<mpsc::Receiver<PendingRequest<Req, Resp>>>,
) -> Option<Batch<Req, Resp>> {
    let mut receiver = receiver.lock().await;
    loop {
        let mut waiting = Vec::new();
        if receiver.recv_many(&mut waiting, MAX_ROWS_PER_STATEMENT).await == 0 {
            return None;
        }
        // Not for those who have given up.
        waiting.retain(|(_, who)| !who.is_closed());
        if !waiting.is_empty() {
            return Some(waiting.into_iter().unzip());
        }
    }
}

fn send_responses<Resp>(who: Vec<oneshot::Sender<Result<Resp, StoreError>>>, answers: BatchResults<Resp>) {
    match answers {
        // Who does not wait any more hears nothing.
        Ok(answers) => who.into_iter().zip(answers).for_each(|(who, answer)| drop(who.send(answer))),
        Err(error) => who.into_iter().for_each(|who| drop(who.send(Err(error.clone())))),
    }
}
