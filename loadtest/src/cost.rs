//! What a measurement costs on this machine: processor time of the server and of ourselves, and what else goes on.
//!
//! ```text
//!   port ──/proc/net/tcp──▶ socket inode ──/proc/*/fd──▶ pid ──/proc/PID/task/*/schedstat──▶ ns on a processor
//! ```
//! Everything comes from `/proc`, read by whoever waits anyway. A server on another machine is not found, and says so.

use std::{fs, io, path::Path, time::Duration};

use crate::result::Machine;

/// Processor time of the calling thread.
#[must_use]
pub fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: points to one timespec; the clock exists on every Linux.
    let got = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(got, 0, "{}", io::Error::last_os_error());
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("below a second"))
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessUse {
    /// Time on a processor of all its threads that are alive, in nanoseconds.
    pub cpu_ns: u64,
    /// Time in which they were ready to run and did not.
    pub run_queue_wait_ns: u64,
}

impl ProcessUse {
    /// Of the process `pid`; `None` if it is gone.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let mut total = Self::default();
        for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
            // A thread may end between the two looks.
            let Ok(text) = fs::read_to_string(task.ok()?.path().join("schedstat")) else { continue };
            let mut numbers = text.split_whitespace().map_while(|word| word.parse::<u64>().ok());
            total.cpu_ns += numbers.next()?;
            total.run_queue_wait_ns += numbers.next()?;
        }
        Some(total)
    }

    /// What was used since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            run_queue_wait_ns: self.run_queue_wait_ns.saturating_sub(before.run_queue_wait_ns),
        }
    }
}

/// The name of a process, as the kernel has it; empty if it is gone.
#[must_use]
pub fn process_name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Resident memory of a process in bytes; 0 if it is gone.
#[must_use]
pub fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|line| kib(line.strip_prefix("VmRSS:")?)).unwrap_or_default()
}

fn kib(text: &str) -> Option<u64> {
    text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// The process that listens on `port` of this machine.
///
/// # Errors
/// Why none is found, in words.
pub fn listening_pid(port: u16) -> Result<u32, String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inodes: Vec<String> = tables.iter().flat_map(|table| listening_inodes(table, port)).collect();
    if inodes.is_empty() {
        return Err(format!("nobody on this machine listens on port {port}"));
    }
    let sockets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").map_err(|error| format!("cannot read /proc: {error}"))?;
    let mut pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let holds = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|link| sockets.iter().any(|socket| link == Path::new(socket)))
    };
    pids.find(holds)
        .ok_or_else(|| format!("the process that listens on port {port} is not ours to look at; hint: --server-pid"))
}

/// The inodes of the sockets that listen on `port`, in the text of `/proc/net/tcp`.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = rows.filter(|row| {
        let is_port = row
            .get(1)
            .and_then(|address| address.rsplit_once(':'))
            .is_some_and(|(_, hex)| u16::from_str_radix(hex, 16) == Ok(port));
        is_port && row.get(3) == Some(&LISTEN)
    });
    ours.filter_map(|row| row.get(9).map(|inode| (*inode).to_owned())).collect()
}

/// What the machine has done with its processors so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineUse {
    /// Ticks of all processors.
    total_ticks: u64,
    /// Those that the hypervisor gave to others.
    steal_ticks: u64,
    /// Time in which some task waited for a processor; `None` = the kernel does not say.
    pressure: Option<Duration>,
}

impl MachineUse {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let pressure = fs::read_to_string("/proc/pressure/cpu").unwrap_or_default();
        Self { pressure: pressure_of(&pressure), ..Self::of_stat(&stat) }
    }

    /// The first line of `/proc/stat`: user nice system idle iowait irq softirq steal, and guests, who are in user.
    fn of_stat(stat: &str) -> Self {
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).map_while(|word| word.parse().ok()).collect();
        let steal_ticks = ticks.get(7).copied().unwrap_or_default();
        Self { total_ticks: ticks.iter().sum(), steal_ticks, pressure: None }
    }

    /// Share of the processors' time since `before` that the hypervisor gave to others.
    #[must_use]
    pub fn steal_share_since(self, before: Self) -> f64 {
        let total = self.total_ticks.saturating_sub(before.total_ticks);
        if total == 0 { 0.0 } else { self.steal_ticks.saturating_sub(before.steal_ticks) as f64 / total as f64 }
    }

    /// Share of `wall`, the time since `before`, in which some task waited for a processor.
    #[must_use]
    pub fn pressure_share_since(self, before: Self, wall: Duration) -> Option<f64> {
        let waited = self.pressure?.checked_sub(before.pressure?)?;
        Some((waited.as_secs_f64() / wall.as_secs_f64()).min(1.0))
    }
}

/// The total of the line that begins with `some`, which is in microseconds.
fn pressure_of(text: &str) -> Option<Duration> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.rsplit_once("total=")?.1.trim().parse().ok().map(Duration::from_micros)
}

/// This machine, for results.
#[must_use]
pub fn machine() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let field = |name: &str| {
        let line = cpu.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let memory = read("/proc/meminfo");
    Machine {
        cpu_model: field("model name"),
        cpus: u32::try_from(milena_net::cores::allowed_cpus().map_or(1, |cpus| cpus.len())).expect("few"),
        memory_bytes: memory.lines().find_map(|line| kib(line.strip_prefix("MemTotal:")?)).unwrap_or_default(),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        is_virtual: field("flags").split(' ').any(|flag| flag == "hypervisor"),
        load_average: read("/proc/loadavg").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::{hint::black_box, net::TcpListener, process};

    use super::*;

    #[test]
    fn the_process_that_listens_on_a_port_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(listening_pid(port), Ok(process::id()));
        drop(listener);
        assert_eq!(listening_pid(port), Err(format!("nobody on this machine listens on port {port}")));
    }

    #[test]
    fn only_sockets_that_listen_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:C383 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0\n\
             1: 0100007F:C383 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0\n\
             2: 0100007F:C384 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0\n";
        assert_eq!(listening_inodes(table, 0xC383), ["111"]);
    }

    #[test]
    fn work_shows_in_the_thread_and_in_the_process() {
        let before = (thread_cpu(), ProcessUse::of(process::id()).unwrap());
        let mut sum = 0_u64;
        while thread_cpu() - before.0 < Duration::from_millis(5) {
            sum = black_box(sum.wrapping_add(1));
        }
        let used = ProcessUse::of(process::id()).unwrap().since(before.1);
        assert!(used.cpu_ns >= 1_000_000, "{used:?}");
        assert!(resident_bytes(process::id()) > 1 << 20);
    }

    #[test]
    fn steal_and_pressure_are_shares_of_what_passed() {
        let before = MachineUse::of_stat("cpu  100 0 100 700 0 0 0 100 5 0\ncpu0 1 2\n");
        let after = MachineUse::of_stat("cpu  150 0 100 720 0 0 0 130 9 0\n");
        assert_eq!(after.steal_share_since(before), 0.3);
        let text = "some avg10=99.21 avg60=98.32 avg300=75.49 total=9185812996\nfull avg10=0.00 total=0\n";
        assert_eq!(pressure_of(text), Some(Duration::from_micros(9_185_812_996)));
        let at = |us| MachineUse { pressure: Some(Duration::from_micros(us)), ..MachineUse::default() };
        assert_eq!(at(750_000).pressure_share_since(at(500_000), Duration::from_secs(1)), Some(0.25));
    }
}
