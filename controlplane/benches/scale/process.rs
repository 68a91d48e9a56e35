//! What a process has used so far, by proc(5).

use std::fs;

/// The ticks of a second in /proc/PID/stat (`getconf CLK_TCK`; 100 on every Linux of today).
const CLOCK_TICKS_PER_SECOND: f64 = 100.0;

/// A process's use of the machine at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProcessUsage {
    /// Resident memory, in KiB.
    pub(crate) rss_kib: f64,
    /// Processor time, in seconds.
    pub(crate) cpu: f64,
    /// How often a thread of it was woken.
    pub(crate) wake_ups: u64,
}

impl ProcessUsage {
    pub(crate) fn from_pid(pid: u32) -> Self {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // Behind the name, which may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks = |field: usize| fields[field].parse::<f64>().unwrap();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let wake_ups = threads
            .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok())
            .map(|status| parse_proc_field(&status, "voluntary_ctxt_switches:"))
            .sum();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        Self {
            rss_kib: parse_proc_field(&status, "VmRSS:") as f64,
            cpu: (ticks(11) + ticks(12)) / CLOCK_TICKS_PER_SECOND,
            wake_ups,
        }
    }
}

fn parse_proc_field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// What the kernel holds for its own objects, sockets among them, in KiB.
pub(crate) fn read_slab_kib() -> f64 {
    parse_proc_field(&fs::read_to_string("/proc/meminfo").unwrap(), "Slab:") as f64
}

/// The processor and the memory of this machine, in words.
pub(crate) fn describe_machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processor");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = parse_proc_field(&fs::read_to_string("/proc/meminfo").unwrap(), "MemTotal:") / (1024 * 1024);
    format!("{cores} cores of {}, {memory} GiB", model.trim_start_matches(['\t', ' ', ':']))
}
