//! The cores: one thread, one executor and one processor for each.
//!
//! ```text
//!   main ── probe ── start ─┬─ milena-core-0   executor on CPU a   future made by make(0) ─┐
//!                           ├─ milena-core-1   executor on CPU b   future made by make(1) ─┼─ join: what each returned
//!                           └─ …                                                           ┘
//! ```
//! Either every core starts or none does: a core's future is made only when all executors exist. A core that panics
//! takes the process with it, because a node that lacks one core would hang every request for that core's keys.

use std::{
    fmt, io,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use glommio::{CpuSet, LocalExecutor, LocalExecutorBuilder, Placement, PoolPlacement};

mod wakeful;

/// A core's number within this process, from 0.
pub type CoreIndex = usize;

/// How many cores there are and how they wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoresConfig {
    /// Executors to start, at least 1. More than there are CPUs works, and makes each slower.
    pub count: usize,
    /// Binds each core to one of the CPUs that this process may use (see [`allowed_cpus`]), in turn. Without it the
    /// kernel moves them about, which suits a machine that others use too.
    pub pin: bool,
    /// Entries of each io_uring submission queue; a full queue is submitted early, never an error.
    pub ring_depth: usize,
    /// How long an idle core looks for work before it sleeps. It saves up to 40 µs of waking for a request that
    /// comes alone, and burns a CPU meanwhile. Zero = sleeps at once. Has no effect without `pin`.
    pub spin_before_park: Duration,
    /// After this long, tasks that ask whether to yield are told so, and the core looks at its sockets and timers.
    pub preempt_timer: Duration,
}

impl CoresConfig {
    /// `count` pinned cores with the settings that suit a server.
    #[must_use]
    pub const fn new(count: usize) -> Self {
        Self {
            count,
            pin: true,
            ring_depth: 1024,
            spin_before_park: Duration::ZERO,
            preempt_timer: Duration::from_millis(1),
        }
    }
}

/// Registered with the rings of each executor, for direct file I/O; sockets do without, so this is the least there is.
const IO_MEMORY_BYTES: usize = 64 << 10;

/// The CPUs on which this thread may run, in ascending order: what `taskset`, a container or a unit file has left.
///
/// # Errors
/// The kernel's, for a machine with more than 1,024 CPUs.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer and the size are those of one set.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the index stays below the size of the set.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect())
}

/// Finds out whether cores can run here at all. To be called once, before the first thread: with several threads, what
/// is registered here takes tens of milliseconds instead of none.
///
/// # Errors
/// [`ProbeError`] says what is missing and how to get it.
pub fn probe() -> Result<(), ProbeError> {
    glommio::early_init();

    if let Err(error) = io_uring::IoUring::new(2) {
        return Err(ProbeError::of_setup(error));
    }
    let locked_bytes_max = locked_memory_limit();
    if locked_bytes_max < LOCKED_BYTES_MIN {
        return Err(ProbeError::LockedMemory { bytes_max: locked_bytes_max });
    }
    // The runtime knows best which operations it needs.
    let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(IO_MEMORY_BYTES).make();
    executor.map(drop).map_err(|error| ProbeError::Executor(error.into()))
}

/// What the runtime insists on.
const LOCKED_BYTES_MIN: u64 = 512 << 10;

fn locked_memory_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: points to one limit.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } == 0 { limit.rlim_cur } else { u64::MAX }
}

/// Why no core can run here.
#[derive(Debug)]
pub enum ProbeError {
    /// The kernel has no io_uring.
    NoUring,
    /// `kernel.io_uring_disabled` has this value.
    SwitchedOff(u8),
    /// The process may not use io_uring, and the setting of the kernel is not the reason.
    Forbidden,
    /// The process may lock no more than this.
    LockedMemory {
        /// RLIMIT_MEMLOCK in bytes.
        bytes_max: u64,
    },
    /// io_uring is there, and making a ring failed.
    Setup(io::Error),
    /// Rings can be made, and something that the runtime needs beside them is missing.
    Executor(io::Error),
}

impl ProbeError {
    fn of_setup(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => Self::NoUring,
            Some(libc::EPERM | libc::EACCES) => match uring_disabled() {
                Some(value) if value > 0 => Self::SwitchedOff(value),
                _ => Self::Forbidden,
            },
            Some(libc::ENOMEM) => Self::LockedMemory { bytes_max: locked_memory_limit() },
            _ => Self::Setup(error),
        }
    }
}

/// Linux 6.6 and newer: 1 = only for the privileged, 2 = for nobody.
fn uring_disabled() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUring => f.write_str(
                "io_uring is not available: the kernel does not have it, or a container's filter hides it; \
                 Linux 5.8 or newer is needed, 5.19 or newer is best",
            ),
            Self::SwitchedOff(value) => write!(
                f,
                "io_uring is switched off: kernel.io_uring_disabled = {value}; \
                 hint: sysctl -w kernel.io_uring_disabled=0"
            ),
            Self::Forbidden => f.write_str(
                "io_uring is forbidden for this process; hint: a container's seccomp profile usually does that, \
                 allow io_uring_setup, io_uring_enter and io_uring_register",
            ),
            Self::LockedMemory { bytes_max } => write!(
                f,
                "io_uring may lock only {} KiB of memory, and needs at least {} KiB; hint: raise `ulimit -l` \
                 (systemd: LimitMEMLOCK=, docker: --ulimit memlock=)",
                bytes_max >> 10,
                LOCKED_BYTES_MIN >> 10
            ),
            Self::Setup(error) => write!(f, "cannot make an io_uring: {error}"),
            Self::Executor(error) => write!(f, "cannot make an executor: {error}"),
        }
    }
}

impl std::error::Error for ProbeError {}

/// Threads that run. Dropping it leaves them running.
#[derive(Debug)]
pub struct Cores<T> {
    threads: Vec<JoinHandle<Option<T>>>,
}

impl<T: Send + 'static> Cores<T> {
    /// Starts `config.count` executors, each on a thread of its own, and runs on core `index` the future that the
    /// function returned by `make(index)` makes there; so the future needs not be `Send`, only that function.
    ///
    /// `make` is called on this thread, in order, once all executors exist. Tasks that a core's future has left behind
    /// when it ends are never polled again and never dropped: it must wait for them.
    ///
    /// # Errors
    /// [`StartError`] when a thread or an executor cannot be made; nothing runs then, and `make` was not called.
    ///
    /// # Panics
    /// When `config.count` is 0.
    pub fn start<Make, MakeFuture, Run>(config: CoresConfig, mut make: Make) -> Result<Self, StartError>
    where
        Make: FnMut(CoreIndex) -> MakeFuture,
        MakeFuture: FnOnce() -> Run + Send + 'static,
        Run: Future<Output = T> + 'static,
    {
        assert!(config.count > 0, "at least one core");
        let cpus = if config.pin { cpus_to_pin_to()? } else { Vec::new() };

        let (report, reports) = mpsc::channel();
        let mut threads = Vec::with_capacity(config.count);
        let mut starts = Vec::with_capacity(config.count);
        for core in 0..config.count {
            let cpu = (!cpus.is_empty()).then(|| cpus[core % cpus.len()]);
            let (start, started) = mpsc::channel::<MakeFuture>();
            let report = report.clone();
            let thread = thread::Builder::new()
                .name(format!("milena-core-{core}"))
                .spawn(move || {
                    let _guard = AbortOnPanic(core);
                    let (executor, outcome) = match executor(&config, cpu) {
                        Ok(executor) => (Some(executor), Ok(())),
                        Err(source) => (None, Err(StartError::Executor { core, cpu, source })),
                    };
                    // Nobody listens when another core has failed before; then nobody starts us either.
                    let _ = report.send(outcome);
                    let make_future = started.recv().ok()?;
                    Some(wakeful::run(&executor?, async move { make_future().await }))
                })
                .map_err(|source| StartError::Thread { core, source })?;
            threads.push(thread);
            starts.push(start);
        }

        for _ in 0..config.count {
            reports.recv().expect("each core reports, or aborts")?;
        }
        for (core, start) in starts.into_iter().enumerate() {
            start.send(make(core)).expect("the core waits for this");
        }
        Ok(Self { threads })
    }

    /// Waits until every core's future has ended, and returns what they returned, in the order of the cores.
    pub fn join(self) -> Vec<T> {
        let join = |thread: JoinHandle<Option<T>>| thread.join().expect("a panic aborts").expect("it was started");
        self.threads.into_iter().map(join).collect()
    }
}

fn cpus_to_pin_to() -> Result<Vec<usize>, StartError> {
    let cpus = allowed_cpus().map_err(StartError::Cpus)?;
    // The runtime looks there when it pins, and panics when it cannot.
    CpuSet::online().map_err(|error| StartError::Topology(error.into()))?;
    Ok(cpus)
}

fn executor(config: &CoresConfig, cpu: Option<usize>) -> io::Result<LocalExecutor> {
    LocalExecutorBuilder::new(cpu.map_or(Placement::Unbound, Placement::Fixed))
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(config.ring_depth)
        .spin_before_park(config.spin_before_park)
        .preempt_timer(config.preempt_timer)
        // Its thread for blocking calls; pinned to the core's own CPU it would hold the core up.
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .make()
        .map_err(io::Error::from)
}

/// On the stack of a core's thread. Release builds abort at the panic itself; this makes tests and debuggers see the same.
struct AbortOnPanic(CoreIndex);

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!(core = self.0, "cores: a core panicked; the process ends");
            std::process::abort();
        }
    }
}

/// Why the cores did not start.
#[derive(Debug)]
pub enum StartError {
    /// The kernel does not tell which CPUs may be used.
    Cpus(io::Error),
    /// `/sys/devices/system` does not tell what the CPUs are.
    Topology(io::Error),
    /// A thread could not be made.
    Thread {
        /// For which core.
        core: CoreIndex,
        /// The kernel's reason.
        source: io::Error,
    },
    /// An executor could not be made.
    Executor {
        /// For which core.
        core: CoreIndex,
        /// The CPU it was to be pinned to.
        cpu: Option<usize>,
        /// The runtime's or the kernel's reason.
        source: io::Error,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpus(source) => write!(f, "cannot tell which CPUs may be used: {source}; hint: try without pinning"),
            Self::Topology(source) => {
                write!(f, "cannot read the CPUs' topology in /sys: {source}; hint: try without pinning")
            }
            Self::Thread { core, source } => write!(f, "cannot make a thread for core {core}: {source}"),
            Self::Executor { core, cpu: Some(cpu), source } => {
                write!(f, "cannot make an executor for core {core} on CPU {cpu}: {source}")
            }
            Self::Executor { core, cpu: None, source } => {
                write!(f, "cannot make an executor for core {core}: {source}")
            }
        }
    }
}

impl std::error::Error for StartError {}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::Command};

    use super::*;

    const IO_URING_SETUP: u32 = libc::SYS_io_uring_setup as u32;

    /// Makes `io_uring_setup` fail with `errno` on this thread, as a container's profile would.
    fn forbid_rings(errno: i32) {
        const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut filter = [
            step(LOAD, 0, 0, 0), // the number of the system call
            step(IF_EQUAL, 0, 1, IO_URING_SETUP),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        // SAFETY: the program is valid and is copied by the kernel.
        let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }

    fn probed_with(errno: i32) -> ProbeError {
        let thread = thread::spawn(move || {
            forbid_rings(errno);
            probe().unwrap_err()
        });
        thread.join().unwrap()
    }

    #[test]
    fn this_machine_can_run_cores() {
        probe().unwrap_or_else(|error| panic!("{error}"));
    }

    #[test]
    fn a_filter_that_forbids_rings_is_named() {
        let error = probed_with(libc::EPERM);
        assert!(matches!(error, ProbeError::Forbidden), "{error}");
        assert!(error.to_string().contains("seccomp"), "{error}");
    }

    #[test]
    fn a_kernel_without_rings_is_told_from_one_that_has_no_memory_for_them() {
        let error = probed_with(libc::ENOSYS);
        assert!(matches!(error, ProbeError::NoUring), "{error}");
        assert!(error.to_string().contains("Linux 5.8 or newer"), "{error}");
        let error = probed_with(libc::ENOMEM);
        assert!(matches!(error, ProbeError::LockedMemory { .. }), "{error}");
        let error = probed_with(libc::EMFILE);
        assert!(error.to_string().starts_with("cannot make an io_uring: Too many open files"), "{error}");
    }

    #[test]
    fn the_limit_on_locked_memory_is_told_with_the_way_out() {
        let text = ProbeError::LockedMemory { bytes_max: 64 << 10 }.to_string();
        assert!(text.starts_with("io_uring may lock only 64 KiB of memory, and needs at least 512 KiB"), "{text}");
        assert!(text.contains("ulimit -l"), "{text}");
    }

    #[test]
    fn each_core_runs_on_its_own_cpu_and_returns_its_result() {
        let cpus = allowed_cpus().unwrap();
        let config = CoresConfig::new(cpus.len() + 1); // one more than there are: the first CPU gets two
        let cores = Cores::start(config, |core| move || async move { (core, allowed_cpus().unwrap()) }).unwrap();
        for (core, (said, pinned)) in cores.join().into_iter().enumerate() {
            assert_eq!(said, core);
            assert_eq!(pinned, [cpus[core % cpus.len()]]);
        }
    }

    #[test]
    fn cores_that_are_not_pinned_may_run_anywhere() {
        let config = CoresConfig { pin: false, ..CoresConfig::new(2) };
        let cores = Cores::start(config, |_| || async { allowed_cpus().unwrap() }).unwrap();
        for allowed in cores.join() {
            assert_eq!(allowed, allowed_cpus().unwrap());
        }
    }

    #[test]
    fn when_one_core_cannot_start_none_does() {
        let thread = thread::spawn(|| {
            forbid_rings(libc::EPERM); // the filter is inherited by the threads of the cores
            let made = |_| -> fn() -> std::future::Ready<()> { panic!("nothing runs") };
            Cores::start(CoresConfig { pin: false, ..CoresConfig::new(2) }, made).map(|_| ()).unwrap_err()
        });
        let error = thread.join().unwrap();
        assert!(matches!(error, StartError::Executor { cpu: None, .. }), "{error}");
        assert!(error.to_string().starts_with("cannot make an executor for core "), "{error}");
    }

    #[test]
    fn a_panic_on_a_core_ends_the_process() {
        const IN_CHILD: &str = "MILENA_TEST_CHILD";
        if std::env::var_os(IN_CHILD).is_some() {
            let run = |_| {
                || async {
                    glommio::spawn_local(async { panic!("in a task") }).await;
                    futures::future::pending::<()>().await;
                }
            };
            Cores::start(CoresConfig::new(1), run).unwrap().join();
            unreachable!("the core never ends by itself");
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "cores::tests::a_panic_on_a_core_ends_the_process", "--nocapture"]).env(IN_CHILD, "1");
        let output = child.output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("in a task"), "{output:?}");
    }
}
