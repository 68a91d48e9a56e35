//! Batching of calls: all calls that wait at a moment become one batch. A burst of thousands of calls then needs only
//! a few statements. An attach causes such a burst, because it wakes the poll of every guest. Without batches each
//! call would wait for a connection, and the last ones would time out. A single call is answered at once.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Duration, timeout};

use super::database::Database;
use super::rows::MAX_ROWS_PER_STATEMENT;
use crate::store::StoreError;

/// The number of batches that run at the same time.
const BATCH_WORKERS: usize = 4;
/// The longest wait for a response, and the longest run of a batch. Agents give up a call after 10 s, so a later
/// response is useless.
const BATCH_TIMEOUT: Duration = Duration::from_secs(9);
/// The largest number of waiting calls. Each one holds up to 64 KiB.
const MAX_PENDING_REQUESTS: usize = 50_000;

/// The responses of a batch, one per request; or one error for the whole batch.
pub(super) type BatchResults<Resp> = Result<Vec<Result<Resp, StoreError>>, StoreError>;

type PendingRequest<Req, Resp> = (Req, oneshot::Sender<Result<Resp, StoreError>>);

/// The handle to submit requests. Its drop ends the workers.
pub(super) struct Batcher<Req, Resp> {
    waiting: mpsc::Sender<PendingRequest<Req, Resp>>,
    late: fn(String) -> StoreError,
}

impl<Req: Send + 'static, Resp: Send + 'static> Batcher<Req, Resp> {
    /// Starts the workers. `work` answers a batch, in the order of its requests. `late` makes the error for a call
    /// that times out.
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
                    // A late batch still runs to its end, because a transaction that is dropped half way would stay
                    // open.
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

    /// Submits a request and waits for its response. If the caller is dropped meanwhile, the batch still completes.
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

/// All requests that wait now, or else the next one that arrives. `None` if the batcher was dropped.
async fn next_batch<Req, Resp>(
    receiver: &Mutex<mpsc::Receiver<PendingRequest<Req, Resp>>>,
) -> Option<Batch<Req, Resp>> {
    let mut receiver = receiver.lock().await;
    loop {
        let mut waiting = Vec::new();
        if receiver.recv_many(&mut waiting, MAX_ROWS_PER_STATEMENT).await == 0 {
            return None;
        }
        // Requests whose callers have given up are dropped.
        waiting.retain(|(_, who)| !who.is_closed());
        if !waiting.is_empty() {
            return Some(waiting.into_iter().unzip());
        }
    }
}

fn send_responses<Resp>(who: Vec<oneshot::Sender<Result<Resp, StoreError>>>, answers: BatchResults<Resp>) {
    match answers {
        // A send fails only if the caller has given up, so the error is ignored.
        Ok(answers) => who.into_iter().zip(answers).for_each(|(who, answer)| drop(who.send(answer))),
        Err(error) => who.into_iter().for_each(|who| drop(who.send(Err(error.clone())))),
    }
}
