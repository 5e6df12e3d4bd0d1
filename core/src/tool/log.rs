//! `milena log inspect`: what is in the log of a stopped node's core.
//!
//! ```text
//!   segment  sealed  records  tombstones     live bytes     dead bytes  damaged    dirty  dirty bytes
//!         0     yes        4           1             64            176        0        0            0
//! ```
//! Dirty is what waits for the store: a disk with such records has acknowledged what is nowhere else.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use milena_storage::log::{Inspection, SegmentInspection, inspect};
use serde_json::{Value, json};

use super::ToolError;

/// A log on disk.
#[derive(Clone, Debug, Args)]
pub(super) struct Log {
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum LogCommand {
    /// Lists the segments of one core's log and verifies every record; exit code 1 if one is damaged. The node must be
    /// stopped; nothing is changed.
    Inspect {
        /// Such as ./milena-data/node-50051/log-000.
        dir: PathBuf,
    },
}

impl Log {
    pub(super) fn run(&self, as_json: bool) -> Result<(), ToolError> {
        let LogCommand::Inspect { dir } = &self.command;
        let found = inspect(dir).map_err(|error| ToolError::Machine(error.to_string()))?;
        let mut stdout = io::stdout().lock();
        let written = if as_json { writeln!(stdout, "{}", as_value(&found)) } else { write_table(&mut stdout, &found) };
        written.map_err(ToolError::Output)?;
        match found.segments.iter().map(|segment| segment.damaged).sum::<u32>() {
            0 => Ok(()),
            damaged => Err(ToolError::Machine(format!("{damaged} damaged records; a node treats them as misses"))),
        }
    }
}

fn write_table(target: &mut impl Write, found: &Inspection) -> io::Result<()> {
    let used: Vec<&SegmentInspection> = found.segments.iter().filter(|segment| segment.is_used).collect();
    writeln!(
        target,
        "core {} of {}: {} entries, {} of {} segments of {} bytes used",
        found.core,
        found.core_count,
        found.entries,
        used.len(),
        found.segments.len(),
        found.segment_bytes
    )?;
    writeln!(
        target,
        "segment  sealed  records  tombstones     live bytes     dead bytes  damaged    dirty  dirty bytes"
    )?;
    for segment in used {
        let sealed = if segment.is_sealed { "yes" } else { "no" };
        let SegmentInspection { number, records, tombstones, live_bytes, dead_bytes, damaged, .. } = segment;
        let dirty = format!("{:>7}  {:>11}", segment.dirty_records, segment.dirty_bytes);
        let figures = format!("{live_bytes:>13}  {dead_bytes:>13}  {damaged:>7}  {dirty}");
        writeln!(target, "{number:>7}  {sealed:>6}  {records:>7}  {tombstones:>10}  {figures}")?;
    }
    Ok(())
}

fn as_value(found: &Inspection) -> Value {
    let segment = |segment: &SegmentInspection| {
        json!({
            "segment": segment.number,
            "used": segment.is_used,
            "sealed": segment.is_sealed,
            "records": segment.records,
            "tombstones": segment.tombstones,
            "live_bytes": segment.live_bytes,
            "dead_bytes": segment.dead_bytes,
            "damaged": segment.damaged,
            "dirty_records": segment.dirty_records,
            "dirty_bytes": segment.dirty_bytes,
        })
    };
    json!({
        "core": found.core,
        "cores": found.core_count,
        "entries": found.entries,
        "segment_bytes": found.segment_bytes,
        "segments": found.segments.iter().map(segment).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Inspection {
        let used = SegmentInspection {
            number: 0,
            is_used: true,
            is_sealed: true,
            records: 4,
            tombstones: 1,
            live_bytes: 64,
            dead_bytes: 176,
            damaged: 0,
            dirty_records: 0,
            dirty_bytes: 0,
        };
        let free = SegmentInspection { number: 1, ..SegmentInspection::default() };
        Inspection { core: 0, core_count: 2, segment_bytes: 65536, entries: 1, segments: vec![used, free] }
    }

    #[test]
    fn the_table_has_a_line_for_each_segment_in_use() {
        let mut text = Vec::new();
        write_table(&mut text, &found()).unwrap();
        let expected = "\
core 0 of 2: 1 entries, 1 of 2 segments of 65536 bytes used
segment  sealed  records  tombstones     live bytes     dead bytes  damaged    dirty  dirty bytes
      0     yes        4           1             64            176        0        0            0
";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn json_has_all_segments() {
        let value = as_value(&found());
        assert_eq!((value["entries"].as_u64(), value["segments"][1]["used"].as_bool()), (Some(1), Some(false)));
    }
}
