//! The event log: one JSON line an event, rotated and bounded.
//!
//! Owns the file and its size. Knows nothing of who reads it; the lines are the same in a simulation.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use trestle_protocol::event::Event;
use trestle_protocol::ids::PeerId;
use trestle_protocol::time::Time;

/// Bytes of one file before it is rotated: some hours of a pipeline at ten microbatches a second.
pub const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Rotated files kept beside the current one; the oldest goes.
pub const FILES_KEPT_MAX: u32 = 4;

/// A node's event log.
pub struct EventLog {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
    peer: String,
}

impl EventLog {
    /// Opens a log to append to.
    pub fn open(path: &Path, peer: PeerId) -> io::Result<Self> {
        Self::bounded(path, peer, FILE_BYTES_MAX)
    }

    fn bounded(path: &Path, peer: PeerId, bytes_max: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_path_buf(), file, bytes, bytes_max, peer: peer.to_hex() })
    }

    /// Writes one event as a whole line, so that a reader never sees half of one.
    pub fn write(&mut self, at: Time, event: &Event) -> io::Result<()> {
        let mut line = line(at, &self.peer, event);
        line.push('\n');
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.bytes_max {
            self.rotate()?;
        }
        self.file.write_all(line.as_bytes())?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let rotated = |n: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        for n in (1..FILES_KEPT_MAX).rev() {
            if rotated(n).exists() {
                fs::rename(rotated(n), rotated(n + 1))?;
            }
        }
        fs::rename(&self.path, rotated(1))?;
        self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.bytes = 0;
        Ok(())
    }
}

/// Writes an event as a line of a log: time in microseconds since the node began, peer in hexadecimal, event.
pub fn line(at: Time, peer: &str, event: &Event) -> String {
    let event = serde_json::to_string(event).expect("an event of plain fields always serialises");
    format!(r#"{{"at":{},"peer":"{peer}","event":{event}}}"#, at.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trestle_protocol::ids::InnerStep;

    #[test]
    fn a_line_is_one_json_object_with_a_legible_peer() {
        let text = line(Time(7), &PeerId([1; 32]).to_hex(), &Event::Started { step: InnerStep(3) });
        assert_eq!(
            text,
            format!(r#"{{"at":7,"peer":"{}","event":{{"Started":{{"step":3}}}}}}"#, "01".repeat(32))
        );
    }

    #[test]
    fn the_log_rotates_and_stays_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let event = Event::Started { step: InnerStep(3) };
        let mut log = EventLog::bounded(&path, PeerId([1; 32]), 400).unwrap();
        for at in 0..100 {
            log.write(Time(at), &event).unwrap();
        }
        let files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len() as u32, FILES_KEPT_MAX + 1);
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            assert!(text.len() <= 400 && text.ends_with('\n'));
            for line in text.lines() {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(value["event"]["Started"]["step"], 3);
            }
        }
        let last = fs::read_to_string(&path).unwrap();
        assert!(last.lines().last().unwrap().contains("\"at\":99"));
    }
}
