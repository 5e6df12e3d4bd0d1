//! A process in a group of the kernel's that may have little memory: what it reads and writes pushes out its own pages, all
//! the time.
//!
//! ```text
//!   parent ── makes the group, with a limit ──▶ child: joins it, measures `faults` ──▶ parent: how often the limit was met
//! ```
//! Version 2 of the groups (`memory.max`) and version 1 (`memory.limit_in_bytes`); see cgroups(7).

use std::{
    env,
    fs::{self, read_to_string},
    io::{self, Error, ErrorKind},
    path::{Path, PathBuf},
    process::Command,
};

/// Memory of the group, all files' pages included: a quarter of the log that is read and written in it.
const LIMIT_BYTES: u64 = 64 << 20;

/// Made empty, and removed when it is again.
struct Group {
    path: PathBuf,
    /// Where the limit is set, and where it is counted that it was met.
    limit: &'static str,
    met: &'static str,
}

impl Group {
    fn new() -> io::Result<Self> {
        let (parent, limit, met) = parent()?;
        let path = parent.join(format!("milena-log-figures-{}", std::process::id()));
        fs::create_dir(&path)?;
        let group = Self { path, limit, met };
        fs::write(group.path.join(group.limit), LIMIT_BYTES.to_string())?;
        Ok(group)
    }

    /// How often somebody in it wanted more than there was: the number at the end of a line, the line of `max` in version 2.
    fn times_met(&self) -> io::Result<u64> {
        let text = read_to_string(self.path.join(self.met))?;
        let line = text.lines().find(|line| line.starts_with("max ")).unwrap_or(&text);
        let number = line.split_whitespace().next_back().and_then(|word| word.parse().ok());
        number.ok_or_else(|| Error::new(ErrorKind::InvalidData, text.clone()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // One that stays is empty, and goes with the machine.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Our own group, where version 1 has it if it has the memory, else where version 2 has it.
fn parent() -> io::Result<(PathBuf, &'static str, &'static str)> {
    let groups = read_to_string("/proc/self/cgroup")?;
    let of = |controllers: &str| {
        let mut lines = groups.lines().map(|line| line.splitn(3, ':').skip(1).collect::<Vec<_>>());
        lines.find(|line| line[0].split(',').any(|controller| controller == controllers)).map(|line| line[1].to_owned())
    };
    if let Some(own) = of("memory") {
        let path = Path::new("/sys/fs/cgroup/memory").join(own.trim_start_matches('/'));
        return Ok((path, "memory.limit_in_bytes", "memory.failcnt"));
    }
    let own = of("").ok_or_else(|| Error::new(ErrorKind::Unsupported, "no groups"))?;
    Ok((Path::new("/sys/fs/cgroup").join(own.trim_start_matches('/')), "memory.max", "memory.events"))
}

/// Measures `faults` in such a group. Where none can be made, says why.
pub(crate) fn faults_in_a_small_group(dir: &Path) -> io::Result<()> {
    let group = match Group::new() {
        Ok(group) => group,
        Err(error) => {
            println!("the same with {} MiB: no group can be made here: {error}", LIMIT_BYTES >> 20);
            return Ok(());
        }
    };
    // The shell joins, so that nothing of the program is outside.
    let status = Command::new("sh")
        .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
        .arg(group.path.join("cgroup.procs"))
        .arg(env::current_exe()?)
        .arg(dir.join("group"))
        .args(["100000", "faults"])
        .status()?;
    println!(
        "the line above in a group with {} MiB for everything: the limit was met {} times; {status}",
        LIMIT_BYTES >> 20,
        group.times_met()?
    );
    fs::remove_dir_all(dir.join("group"))
}
