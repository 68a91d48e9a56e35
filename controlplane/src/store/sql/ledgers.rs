//! The tables `ledgers`, `commands` and `requested`. Rows are read into a [`Ledger`], whose rules decide, and the
//! changes are written back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use keypair_agent::policy::command::{self, Action, Command, Origin};
use keypair_agent::policy::outcome::CommandResult;
use keypair_agent::policy::types::{CommandId, InstanceId, Sequence};
use sqlx::any::AnyRow;
use sqlx::{AnyPool, Row};

use super::rows::{self, MAX_ROWS_PER_STATEMENT};
use super::{Connection, key_pairs, to_store_error, to_write_error};
use crate::ids::RequestId;
use crate::ledger::{Binding, ConfirmedBinding, Ledger, MAX_ANSWERED_COMMANDS, QueueEntry, ReceivedResult};
use crate::store::{CommandStatus, QueuedCommand, StoreError};

/// The prefixes of the columns of the confirmed key pair, and of a command's key pair.
const CONFIRMED_PREFIX: &str = "confirmed_";
const QUEUED_PREFIX: &str = "queued_";

/// How two transactions are kept from changing the same ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Locking {
    /// There is only one connection (SQLite).
    WholeFile,
    /// The row of the ledger is locked (PostgreSQL).
    Rows,
}

/// What to do if another transaction has locked a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnLocked {
    Wait,
    Skip,
}

/// The instances whose ledgers are loaded, and the answered commands to include. At most one chunk of commands.
#[derive(Debug, Clone, Copy)]
pub(super) enum LedgerFilter<'a> {
    All,
    Instances(&'a [&'a InstanceId], &'a [&'a CommandId]),
}

/// Loaded ledgers. An unreadable row is an error for its own instance only.
pub(super) type LoadedLedgers = BTreeMap<InstanceId, Result<Ledger, StoreError>>;

/// Inserts the missing ledgers of these instances, which must be sorted. A transaction inserts all of them before it
/// locks any. While it inserts, it waits only for transactions that insert. While it locks, it waits only for
/// transactions that lock. The order is always ascending, so there is no deadlock.
pub(super) async fn insert_missing_ledgers(
    connection: &mut Connection,
    instances: &[&InstanceId],
) -> Result<(), StoreError> {
    for chunk in instances.chunks(MAX_ROWS_PER_STATEMENT) {
        let rows = rows::values_placeholders(chunk.len(), 1).replace(')', ", 0)");
        let text = format!("INSERT INTO ledgers (instance, highest) VALUES {rows} ON CONFLICT DO NOTHING");
        let query = rows::bind_instance_ids(rows::build_query(&text, chunk.len()), chunk);
        query.execute(&mut *connection).await.map_err(to_store_error)?;
    }
    Ok(())
}

/// Locks the ledgers of these instances, which must be sorted, until the end of the transaction. Returns the
/// instances whose ledgers were locked. The content must be read by a later statement. A statement that waits for a
/// lock sees the locked row as it is after the wait. But it sees the rows of other tables as they were before.
pub(super) async fn lock_ledgers(
    connection: &mut Connection,
    instances: &[&InstanceId],
    locking: Locking,
    on_locked: OnLocked,
) -> Result<BTreeSet<InstanceId>, StoreError> {
    if locking == Locking::WholeFile {
        return Ok(instances.iter().copied().cloned().collect());
    }
    let skip = match on_locked {
        OnLocked::Wait => "",
        OnLocked::Skip => " SKIP LOCKED",
    };
    let mut locked = BTreeSet::new();
    for chunk in instances.chunks(MAX_ROWS_PER_STATEMENT) {
        // The order of bytes, like the sorted chunks, independent of the database's locale.
        let text = format!(
            "SELECT instance FROM ledgers WHERE instance IN ({}) ORDER BY instance COLLATE \"C\" FOR UPDATE{skip}",
            rows::placeholders(0, chunk.len())
        );
        let query = rows::bind_instance_ids(rows::build_query(&text, chunk.len()), chunk);
        for row in query.fetch_all(&mut *connection).await.map_err(to_store_error)? {
            locked.insert(rows::parse_instance_id(&row)?);
        }
    }
    Ok(locked)
}

/// Loads ledgers with their unanswered commands, and with the other selected commands. One statement reads a chunk,
/// so each ledger is consistent.
pub(super) async fn load_ledgers(
    connection: &mut Connection,
    which: LedgerFilter<'_>,
) -> Result<LoadedLedgers, StoreError> {
    let mut parts = BTreeMap::new();
    match which {
        LedgerFilter::All => {
            let text = select_ledgers_sql("", "");
            collect_rows(
                &mut parts,
                sqlx::query(&text).fetch_all(connection).await.map_err(to_store_error)?,
            )?;
        }
        LedgerFilter::Instances(instances, commands) => {
            for chunk in instances.chunks(MAX_ROWS_PER_STATEMENT) {
                let also = match commands.len() {
                    0 => String::new(),
                    count => format!(" OR c.id IN ({})", rows::placeholders(chunk.len(), count)),
                };
                let only = format!("WHERE l.instance IN ({})", rows::placeholders(0, chunk.len()));
                let text = select_ledgers_sql(&also, &only);
                let mut query =
                    rows::bind_instance_ids(rows::build_query(&text, chunk.len().max(commands.len())), chunk);
                for command in commands {
                    query = query.bind(command.as_str());
                }
                collect_rows(&mut parts, query.fetch_all(&mut *connection).await.map_err(to_store_error)?)?;
            }
        }
    }
    let kept = |(confirmed, entries, highest)| Ledger::from_parts(confirmed, entries, highest);
    Ok(parts.into_iter().map(|(instance, parts)| (instance, parts.map(kept))).collect())
}

/// The parts of a ledger: the confirmed binding, the commands, and the highest sequence.
type LedgerParts = (ConfirmedBinding, VecDeque<QueueEntry>, u64);

/// The SELECT with one row for each ledger and command.
fn select_ledgers_sql(also: &str, only: &str) -> String {
    let (confirmed, queued) =
        (key_pairs::prefixed_columns("k", CONFIRMED_PREFIX), key_pairs::prefixed_columns("q", QUEUED_PREFIX));
    format!(
        "SELECT l.instance, l.password_auth, l.confirmed_by, l.highest, {confirmed}, \
                c.sequence, c.command, c.handed_out, c.result, {queued} \
         FROM ledgers l LEFT JOIN key_pairs k ON k.id = l.key_pair \
         LEFT JOIN commands c ON c.instance = l.instance AND (c.result IS NULL{also}) \
         LEFT JOIN key_pairs q ON q.id = c.key_pair {only} ORDER BY l.instance, c.sequence"
    )
}

fn collect_rows(
    parts: &mut BTreeMap<InstanceId, Result<LedgerParts, StoreError>>,
    rows: Vec<AnyRow>,
) -> Result<(), StoreError> {
    for row in rows {
        let ledger = parts.entry(rows::parse_instance_id(&row)?).or_insert_with(|| {
            let highest: i64 = row.try_get("highest").map_err(to_store_error)?;
            Ok((parse_confirmed(&row)?, VecDeque::new(), highest.try_into().map_err(to_store_error)?))
        });
        if let Ok((_, entries, _)) = ledger {
            match parse_entry(&row) {
                Ok(entry) => entries.extend(entry),
                Err(error) => *ledger = Err(error),
            }
        }
    }
    Ok(())
}

fn parse_confirmed(row: &AnyRow) -> Result<ConfirmedBinding, StoreError> {
    let password_auth: Option<String> = row.try_get("password_auth").map_err(to_store_error)?;
    let binding = match password_auth {
        None => None,
        Some(word) => {
            let key_pair = key_pairs::parse_prefixed_row(row, CONFIRMED_PREFIX)?;
            Some(Binding { key_pair, password_auth: word.parse()? })
        }
    };
    let by: Option<i64> = row.try_get("confirmed_by").map_err(to_store_error)?;
    Ok(ConfirmedBinding { binding, by: by.map(sequence_from_sql).transpose()? })
}

/// Inserts commands, at most one for each instance.
pub(super) async fn insert_commands(
    connection: &mut Connection,
    queued: &[(&InstanceId, Box<QueueEntry>)],
) -> Result<(), StoreError> {
    for chunk in queued.chunks(MAX_ROWS_PER_STATEMENT) {
        let rows = rows::values_placeholders(chunk.len(), 5);
        let text = format!("INSERT INTO commands (instance, sequence, id, command, key_pair) VALUES {rows}");
        let mut query = rows::build_query(&text, chunk.len());
        for (instance, entry) in chunk {
            query = query
                .bind(instance.as_str())
                .bind(sequence_to_sql(entry.sequence)?)
                .bind(entry.command.id.as_str())
                .bind(serde_json::to_string(&entry.command).map_err(to_store_error)?)
                .bind(entry.binding.as_ref().map(|binding| binding.key_pair.id.as_str()));
        }
        query.execute(&mut *connection).await.map_err(to_store_error)?;
        let text = format!(
            "INSERT INTO ledgers (instance, highest) VALUES {} \
             ON CONFLICT (instance) DO UPDATE SET highest = excluded.highest",
            rows::values_placeholders(chunk.len(), 2)
        );
        let mut query = rows::build_query(&text, chunk.len());
        for (instance, entry) in chunk {
            query = query.bind(instance.as_str()).bind(sequence_to_sql(entry.sequence)?);
        }
        query.execute(&mut *connection).await.map_err(to_store_error)?;
    }
    Ok(())
}

/// Records the first hand-out of a command. It is a transaction of its own, because a few moments of difference
/// between two hand-outs do not matter.
pub(super) async fn mark_handed_out(pool: &AnyPool, command: &CommandId, now: u64) -> Result<(), StoreError> {
    let query = sqlx::query("UPDATE commands SET handed_out = $1 WHERE id = $2 AND handed_out IS NULL");
    let now = i64::try_from(now).map_err(to_store_error)?;
    query.bind(now).bind(command.as_str()).execute(pool).await.map_err(to_write_error)?;
    Ok(())
}

/// Stores results, at most one chunk.
pub(super) async fn store_results(
    connection: &mut Connection,
    answers: &[(&CommandId, &str)],
) -> Result<(), StoreError> {
    let text = format!(
        "WITH said (id, result) AS (VALUES {}) \
         UPDATE commands SET result = said.result FROM said WHERE commands.id = said.id",
        rows::values_placeholders(answers.len(), 2)
    );
    let mut query = rows::build_query(&text, answers.len());
    for (command, result) in answers {
        query = query.bind(command.as_str()).bind(*result);
    }
    query.execute(connection).await.map_err(to_store_error)?;
    Ok(())
}

/// Stores the confirmed bindings of instances, at most one chunk. Then deletes the oldest answered commands of these
/// instances.
pub(super) async fn store_confirmed(
    connection: &mut Connection,
    ledgers: &[(&InstanceId, &ConfirmedBinding)],
) -> Result<(), StoreError> {
    let text = format!(
        "WITH said (instance, key_pair, password_auth, confirmed_by) AS (VALUES {}) UPDATE ledgers \
         SET key_pair = said.key_pair, password_auth = said.password_auth, confirmed_by = said.confirmed_by \
         FROM said WHERE ledgers.instance = said.instance",
        rows::values_placeholders(ledgers.len(), 4)
    );
    let mut query = rows::build_query(&text, ledgers.len());
    for (instance, confirmed) in ledgers {
        let binding = confirmed.binding.as_ref();
        query = query
            .bind(instance.as_str())
            .bind(binding.map(|binding| binding.key_pair.id.as_str()))
            .bind(binding.map(|binding| binding.password_auth.to_string()))
            .bind(confirmed.by.map(sequence_to_sql).transpose()?);
    }
    query.execute(&mut *connection).await.map_err(to_store_error)?;
    let instances: Vec<&InstanceId> = ledgers.iter().map(|(instance, _)| *instance).collect();
    delete_oldest_answered(connection, &instances).await
}

async fn delete_oldest_answered(
    connection: &mut Connection,
    instances: &[&InstanceId],
) -> Result<(), StoreError> {
    let text = format!(
        "SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY instance ORDER BY sequence DESC) AS age \
         FROM commands WHERE instance IN ({}) AND result IS NOT NULL) AS answered WHERE age > {MAX_ANSWERED_COMMANDS}",
        rows::placeholders(0, instances.len())
    );
    let query = rows::bind_instance_ids(rows::build_query(&text, instances.len()), instances);
    let oldest = query.fetch_all(&mut *connection).await.map_err(to_store_error)?;
    // Most instances never have so many answered commands, so they are selected first.
    for chunk in oldest.chunks(MAX_ROWS_PER_STATEMENT) {
        let text = format!("DELETE FROM commands WHERE id IN ({})", rows::placeholders(0, chunk.len()));
        let mut query = rows::build_query(&text, chunk.len());
        for row in chunk {
            query = query.bind(row.try_get::<String, _>("id").map_err(to_store_error)?);
        }
        query.execute(&mut *connection).await.map_err(to_store_error)?;
    }
    Ok(())
}

/// Stores the commands of a request.
pub(super) async fn insert_request(
    connection: &mut Connection,
    request: &RequestId,
    placed: &[QueuedCommand],
) -> Result<(), StoreError> {
    let mut places = 0_i64..;
    for chunk in placed.chunks(MAX_ROWS_PER_STATEMENT) {
        let rows = rows::values_placeholders(chunk.len(), 3);
        let text = format!("INSERT INTO requested (request, place, command) VALUES {rows}");
        let mut query = rows::build_query(&text, chunk.len());
        for (placed, place) in chunk.iter().zip(&mut places) {
            query = query.bind(request.as_str()).bind(place).bind(placed.command.as_str());
        }
        query.execute(&mut *connection).await.map_err(to_store_error)?;
    }
    Ok(())
}

/// The commands of a request, with their results.
pub(super) async fn load_command_statuses(
    connection: &mut Connection,
    request: &RequestId,
) -> Result<Vec<CommandStatus>, StoreError> {
    let query = sqlx::query(
        "SELECT c.instance, c.command, c.result FROM requested r JOIN commands c ON c.id = r.command \
         WHERE r.request = $1 ORDER BY r.place",
    );
    let rows = query.bind(request.as_str()).fetch_all(connection).await.map_err(to_store_error)?;
    let fate = |row: &AnyRow| {
        let outcome = parse_result(row)?.map(|answer| answer.outcome);
        Ok(CommandStatus { instance: rows::parse_instance_id(row)?, command: parse_command(row)?, outcome })
    };
    rows.iter().map(fate).collect()
}

/// The command of a row; `None` if the ledger of the row has none.
fn parse_entry(row: &AnyRow) -> Result<Option<QueueEntry>, StoreError> {
    let Some(number) = row.try_get("sequence").map_err(to_store_error)? else { return Ok(None) };
    let command = parse_command(row)?;
    let binding = match command.action {
        Action::Attach { password_auth, .. } => {
            Some(Binding { key_pair: key_pairs::parse_prefixed_row(row, QUEUED_PREFIX)?, password_auth })
        }
        Action::Detach { .. } | Action::SetPasswordAuth { .. } => None,
    };
    let handed_out: Option<i64> = row.try_get("handed_out").map_err(to_store_error)?;
    let handed_out = handed_out.map(u64::try_from).transpose().map_err(to_store_error)?;
    Ok(Some(QueueEntry {
        command,
        sequence: sequence_from_sql(number)?,
        binding,
        handed_out,
        answer: parse_result(row)?,
    }))
}

/// Parses a command with the agent's own parser.
fn parse_command(row: &AnyRow) -> Result<Command, StoreError> {
    let text: String = row.try_get("command").map_err(to_store_error)?;
    let nobody = CommandId::try_from("none".to_owned())?;
    let received =
        command::parse_command(text.as_bytes(), Origin::Channel, &nobody).map_err(to_store_error)?;
    received.command.map_err(|refusal| to_store_error(refusal.message))
}

fn parse_result(row: &AnyRow) -> Result<Option<ReceivedResult>, StoreError> {
    let Some(text) = row.try_get::<Option<String>, _>("result").map_err(to_store_error)? else {
        return Ok(None);
    };
    let outcome: CommandResult = serde_json::from_str(&text).map_err(to_store_error)?;
    Ok(Some(ReceivedResult { outcome, bytes: text.into_bytes() }))
}

fn sequence_from_sql(number: i64) -> Result<Sequence, StoreError> {
    Ok(Sequence::try_from(u64::try_from(number).map_err(to_store_error)?)?)
}

fn sequence_to_sql(sequence: Sequence) -> Result<i64, StoreError> {
    i64::try_from(u64::from(sequence)).map_err(to_store_error)
}
