//! What was seen: as tables and charts of docs/scale.md, and held against what is promised.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fleet::SecondSample;
use crate::plot::{BarSeries, ReferenceLine, render_chart};
use crate::process::describe_machine;
use crate::scenes::{AttachRun, FaultRun, IdleRun, LEAD_SECONDS, LONG_POLL_SECONDS, QuietRun, RestartRun};

/// A region, on paper.
const GUESTS_PER_REGION: f64 = 1e6;
/// How many polls one server is given there.
const POLLS_PER_SERVER: f64 = 200_000.0;

const REQUESTS_COLOR: &str = "#8fb3d9";
const HIGHLIGHT_COLOR: &str = "#c44e52";

/// Everything that was seen.
pub(crate) struct Measurements {
    pub(crate) agents: u64,
    pub(crate) quiet: QuietRun,
    pub(crate) idle: IdleRun,
    pub(crate) memory: AttachRun,
    pub(crate) killed: RestartRun,
    pub(crate) ended: RestartRun,
    pub(crate) half_fails: FaultRun,
    pub(crate) slow: FaultRun,
    pub(crate) shared: Option<AttachRun>,
}

fn requests_per_second(seconds: &[SecondSample]) -> Vec<u64> {
    seconds.iter().map(|second| second.asked).collect()
}

fn first_tries_per_second(seconds: &[SecondSample]) -> Vec<u64> {
    seconds.iter().map(|second| second.first_tries).collect()
}

fn peak(values: &[u64]) -> u64 {
    values.iter().copied().max().unwrap_or(0)
}

fn mean(values: &[u64]) -> f64 {
    values.iter().sum::<u64>() as f64 / values.len().max(1) as f64
}

/// Of sorted times: the one that so many percent are not above, in seconds.
fn percentile(times: &[u64], percent: usize) -> f64 {
    times[(times.len() * percent / 100).min(times.len() - 1)] as f64 / 1000.0
}

impl Measurements {
    /// Requests a second of a fleet in which nothing happens.
    fn steady_rate(&self) -> f64 {
        self.agents as f64 / LONG_POLL_SECONDS as f64
    }

    /// A number of requests a second, as so many times that.
    fn ratio_to_steady_rate(&self, requests: u64) -> f64 {
        requests as f64 / self.steady_rate()
    }

    /// The attaches to all.
    fn attaches(&self) -> impl Iterator<Item = &AttachRun> {
        std::iter::once(&self.memory).chain(&self.shared)
    }

    fn percent_of_agents(&self, part: u64) -> f64 {
        part as f64 * 100.0 / self.agents as f64
    }

    /// What is not as promised.
    pub(crate) fn failed_expectations(&self) -> Vec<String> {
        let steady = self.steady_rate();
        let mut broken = Vec::new();
        let mut hold = |what: &str, holds: bool| {
            if !holds {
                broken.push(what.to_owned());
            }
        };
        let idle = requests_per_second(&self.idle.seconds);
        hold("idle, the fleet sends what `wait` implies", mean(&idle) >= steady * 0.98);
        hold("idle, it sends no more", mean(&idle) <= steady * 1.01);
        hold("idle, it sends evenly", peak(&idle) as f64 <= steady * 1.5);
        hold("idle, no request fails", self.idle.seconds.iter().all(|second| second.failures() == 0));
        let after_attach = peak(&requests_per_second(&self.idle.after_attach)) as f64;
        // Waits are whole seconds: what began in one moment may end at the edge of two.
        hold(
            "two minutes after an attach to all no second sees twice the steady rate",
            after_attach <= steady * 2.0,
        );
        for attach in self.attaches() {
            for times in [&attach.received, &attach.reported] {
                hold("an attach reaches all and is reported by all, once", times.len() as u64 == self.agents);
            }
        }
        for restart in [&self.killed, &self.ended] {
            let tries = first_tries_per_second(&restart.seconds);
            hold(
                "after a restart no second sees 5 % of the first tries",
                self.percent_of_agents(peak(&tries)) < 5.0,
            );
            hold("after a restart all try", tries.iter().sum::<u64>() as f64 > self.agents as f64 * 0.9);
            let most = peak(&requests_per_second(&restart.seconds)) as f64;
            hold("after a restart no second sees four times the steady rate", most <= steady * 4.0);
        }
        for trouble in [&self.half_fails, &self.slow] {
            let most = peak(&requests_per_second(&trouble.seconds)) as f64;
            hold("in trouble no second sees more than twice the steady rate", most <= steady * 2.0);
        }
        let in_minute: u64 = requests_per_second(self.half_fails.minute()).iter().sum();
        let part = self.half_fails.suffered as f64 / in_minute as f64;
        hold("half the answers failed", (0.45..0.55).contains(&part));
        let in_minute: u64 = requests_per_second(self.slow.minute()).iter().sum();
        hold("every answer was late", self.slow.suffered as f64 > in_minute as f64 * 0.95);
        hold(
            "where answers are late it asks no more than before",
            mean(&requests_per_second(self.slow.minute())) <= steady * 1.05,
        );
        broken
    }

    /// What was seen, as a table.
    pub(crate) fn measurements_table(&self) -> String {
        let steady = self.steady_rate();
        let mut rows = vec![
            ("agents, all with their long poll held".to_owned(), format_thousands(self.agents as f64)),
            ("memory of the server a waiting poll".to_owned(), format!("{:.1} KiB", self.quiet.kib_each)),
            (
                format!(
                    "wake-ups and processor time of the server in {} s in which no poll ends",
                    self.quiet.seconds
                ),
                format!("{}, {:.2} s", self.quiet.wake_ups, self.quiet.cpu),
            ),
            (
                "memory of the kernel for its end of the connection".to_owned(),
                format!("{:.1} KiB", self.quiet.kernel_kib_each),
            ),
            (
                "memory of the fleet's process an agent".to_owned(),
                format!("{:.1} KiB", self.quiet.agent_kib_each),
            ),
            ("requests a second that `wait` implies".to_owned(), format!("{steady:.1}")),
            (
                "idle, two minutes: requests a second; the most".to_owned(),
                format!(
                    "{:.1}; {}",
                    mean(&requests_per_second(&self.idle.seconds)),
                    peak(&requests_per_second(&self.idle.seconds))
                ),
            ),
            (
                "idle: processor time of the server a request".to_owned(),
                format!("{:.0} µs", self.idle.cpu_each * 1e6),
            ),
            (
                "a minute, from two minutes after an attach to all: requests a second; the most".to_owned(),
                format!(
                    "{:.1}; {}",
                    mean(&requests_per_second(&self.idle.after_attach)),
                    peak(&requests_per_second(&self.idle.after_attach))
                ),
            ),
        ];
        for attach in self.attaches() {
            let on = match attach.servers {
                1 => "one server, `memory:`".to_owned(),
                servers => format!("{servers} servers, PostgreSQL"),
            };
            let [alone, waiting, after] = attach.rss_kib.map(|kib| kib / 1024.0);
            rows.push((
                format!("attach to all, {on}: until an agent has it, median; 99th percentile; the last"),
                format_latencies(&attach.received),
            ));
            rows.push(("… until its result is stored".to_owned(), format_latencies(&attach.reported)));
            rows.push(("… requests that failed and were made again".to_owned(), attach.failed.to_string()));
            rows.push((
                "… memory of a server: alone; with its waiting polls; after the attach".to_owned(),
                format!("{alone:.0}; {waiting:.0}; {after:.0} MiB"),
            ));
            rows.push((
                "… memory a waiting poll".to_owned(),
                format!("{:.1} KiB", (waiting - alone) * 1024.0 * attach.servers as f64 / self.agents as f64),
            ));
        }
        for (restart, how) in [(&self.killed, "killed"), (&self.ended, "ended")] {
            let tries = first_tries_per_second(&restart.seconds);
            rows.push((
                format!("the server {how} and back after {} s: first tries in the peak second", restart.away),
                format!("{} ({:.1} % of the fleet)", peak(&tries), self.percent_of_agents(peak(&tries))),
            ));
            let most = peak(&requests_per_second(&restart.seconds));
            rows.push((
                "… all requests in the peak second".to_owned(),
                format!("{most} ({:.1} times the steady rate)", self.ratio_to_steady_rate(most)),
            ));
        }
        for (trouble, what) in
            [(&self.half_fails, "half the answers fail"), (&self.slow, "every answer is 5 s late")]
        {
            let most = peak(&requests_per_second(&trouble.seconds));
            rows.push((
                format!("a minute in which {what}: requests in the peak second"),
                format!(
                    "{most} ({:.2} times the steady rate); {:.1} in the mean",
                    self.ratio_to_steady_rate(most),
                    mean(&requests_per_second(trouble.minute()))
                ),
            ));
        }
        let rows: String = rows.into_iter().map(|(what, seen)| format!("| {what} | {seen} |\n")).collect();
        format!("Seen on {}.\n\n| | |\n|---|---|\n{rows}", describe_machine())
    }

    /// What a region asks, from what one poll and one request were seen to cost.
    fn region_table(&self) -> String {
        let rate = GUESTS_PER_REGION / LONG_POLL_SECONDS as f64;
        let servers = GUESTS_PER_REGION / POLLS_PER_SERVER;
        let restarted =
            [&self.killed, &self.ended].map(|restart| peak(&requests_per_second(&restart.seconds)));
        let restarted = self.ratio_to_steady_rate(peak(&restarted));
        let in_trouble = self.ratio_to_steady_rate(peak(&requests_per_second(&self.half_fails.seconds)));
        let cores = rate * self.idle.cpu_each;
        let gib = |guests: f64, kib_each: f64| guests * kib_each / (1024.0 * 1024.0);
        let [alone, _, after] = self.memory.rss_kib;
        let after_each = (after - alone) / self.agents as f64;
        let rows = [
            ("polls held at any time", format!("{}, a descriptor each", format_thousands(GUESTS_PER_REGION))),
            (
                "requests a second, idle",
                format!("1,000,000 ÷ {LONG_POLL_SECONDS} s = {}", format_thousands(rate)),
            ),
            (
                "… processor time",
                format!("{} × {:.0} µs = {cores:.1} cores", format_thousands(rate), self.idle.cpu_each * 1e6),
            ),
            (
                "memory of the servers, polls waiting",
                format!(
                    "1,000,000 × {:.1} KiB = {:.1} GiB",
                    self.quiet.kib_each,
                    gib(GUESTS_PER_REGION, self.quiet.kib_each)
                ),
            ),
            (
                "… after a command for all at once, which nobody gives",
                format!("1,000,000 × {after_each:.1} KiB = {:.1} GiB", gib(GUESTS_PER_REGION, after_each)),
            ),
            (
                "memory of their kernels",
                format!(
                    "1,000,000 × {:.1} KiB = {:.1} GiB",
                    self.quiet.kernel_kib_each,
                    gib(GUESTS_PER_REGION, self.quiet.kernel_kib_each)
                ),
            ),
            (
                "servers of 200,000 polls each",
                format!(
                    "{servers:.0}, and one more: {} requests a second, {:.1} GiB and {:.1} cores each",
                    format_thousands(rate / servers),
                    gib(POLLS_PER_SERVER, self.quiet.kib_each),
                    cores / servers
                ),
            ),
            (
                "one of them dies: first tries at the others, in the mean",
                format!(
                    "200,000 ÷ 30 s = {} a second for half a minute",
                    format_thousands(POLLS_PER_SERVER / 30.0)
                ),
            ),
            (
                "all of them restart at once: requests in the peak second",
                format!(
                    "{} × {restarted:.1} = {}",
                    format_thousands(rate),
                    format_thousands(rate * restarted)
                ),
            ),
            (
                "half the answers fail for a minute: requests in the peak second",
                format!(
                    "{} × {in_trouble:.2} = {}",
                    format_thousands(rate),
                    format_thousands(rate * in_trouble)
                ),
            ),
        ];
        let rows: String = rows.into_iter().map(|(what, seen)| format!("| {what} | {seen} |\n")).collect();
        format!("| a region of a million guests | |\n|---|---|\n{rows}")
    }

    /// Puts tables and charts into docs/scale.md.
    pub(crate) fn update_docs(&self) {
        let docs = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"));
        let page = docs.join("scale.md");
        let text = fs::read_to_string(&page).unwrap();
        let text = replace_section(&text, "figures", &self.measurements_table());
        fs::write(page, replace_section(&text, "region", &self.region_table())).unwrap();
        self.write_charts(&docs.join("scale"));
    }

    fn write_charts(&self, folder: &Path) {
        let steady = self.steady_rate();
        fs::create_dir_all(folder).unwrap();
        let save = |name: &str, svg: String| fs::write(folder.join(name), svg).unwrap();
        let rates = [
            ReferenceLine { name: "steady", value: steady },
            ReferenceLine { name: "twice", value: steady * 2.0 },
        ];
        let five = [
            ReferenceLine { name: "5 % of the fleet", value: self.agents as f64 * 0.05 },
            ReferenceLine { name: "steady", value: steady },
        ];
        for (name, restart, title) in [
            ("killed.svg", &self.killed, "The control plane is killed, and back 20 seconds later"),
            ("ended.svg", &self.ended, "The control plane is ended, and back two seconds later"),
        ] {
            let rows = [
                BarSeries {
                    name: "requests a second",
                    color: REQUESTS_COLOR,
                    values: requests_per_second(&restart.seconds),
                },
                BarSeries {
                    name: "first tries",
                    color: HIGHLIGHT_COLOR,
                    values: first_tries_per_second(&restart.seconds),
                },
            ];
            save(name, render_chart(title, LEAD_SECONDS, &rows, &five));
        }
        for (name, trouble, title) in [
            ("half-fails.svg", &self.half_fails, "For a minute half the answers fail"),
            ("slow.svg", &self.slow, "For a minute every answer is five seconds late"),
        ] {
            let failed = trouble.seconds.iter().map(SecondSample::failures).collect();
            let rows = [
                BarSeries {
                    name: "requests a second",
                    color: REQUESTS_COLOR,
                    values: requests_per_second(&trouble.seconds),
                },
                BarSeries { name: "failed", color: HIGHLIGHT_COLOR, values: failed },
            ];
            save(name, render_chart(title, LEAD_SECONDS, &rows, &rates));
        }
        let rows = [BarSeries {
            name: "requests a second",
            color: REQUESTS_COLOR,
            values: requests_per_second(&self.idle.after_attach),
        }];
        save("after-attach.svg", render_chart("Two minutes after an attach to all", 0, &rows, &rates));
    }
}

fn format_latencies(times: &[u64]) -> String {
    let last = times.last().copied().unwrap_or(0) as f64 / 1000.0;
    format!("{:.2}; {:.2}; {last:.2} s", percentile(times, 50), percentile(times, 99))
}

/// A whole number, its thousands set apart.
fn format_thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// The text with another content between two marks.
fn replace_section(text: &str, mark: &str, content: &str) -> String {
    let (begin, end) = (format!("<!-- {mark} -->\n"), format!("<!-- end of {mark} -->"));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    format!("{before}{begin}{content}{end}{after}")
}
