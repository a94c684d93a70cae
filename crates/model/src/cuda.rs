//! Owns the presence of CUDA in this process: whether libtorch's CUDA half is loaded, and why not. It may not know who
//! wants it.
//!
//! The program needs no symbol of `libtorch_cuda`, so a linker that is told `--as-needed`, which Rust does on Linux, drops
//! it although the build asks for it: `ldd` shows `libtorch_cpu` and `libc10` alone, and libtorch then says that there is
//! no CUDA. So it is loaded here, when somebody first asks for CUDA. It has to come before libtorch's own first look for
//! CUDA, which is remembered for good; processes that compute on the processor alone save its load time and memory.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tch::{Cuda, Device};

use crate::failure::refusal;

#[cfg(target_os = "linux")]
const LIBRARY: &str = "libtorch_cuda.so";

/// NVIDIA's driver as programs see it. Without it `libtorch_cuda` is of no use, and costs 0.2 s and 240 MB in every process
/// that asks for the best device there is.
#[cfg(target_os = "linux")]
const DRIVER: &str = "libcuda.so.1";

/// How libtorch's CUDA half stands to this process.
#[derive(Debug)]
enum Presence {
    Loaded,
    /// It lies beside libtorch, but the machine has no driver for it.
    Driverless(String),
    /// It lies beside libtorch and the system refused to load it.
    Refused(PathBuf, String),
    /// This libtorch was built without it.
    Missing,
}

/// Loads libtorch's CUDA half if there is one; calls after the first do nothing.
pub(crate) fn load() {
    presence();
}

/// Returns how many CUDA devices can be used.
pub(crate) fn count() -> usize {
    load();
    if Cuda::is_available() { usize::try_from(Cuda::device_count()).unwrap_or(0) } else { 0 }
}

/// Checks that a CUDA device can be used, or says why not.
pub(crate) fn check(index: usize) -> Result<(), String> {
    let count = count();
    if index < count {
        return Ok(());
    }
    if count > 0 {
        return Err(format!("the CUDA devices seen are 0 to {}", count - 1));
    }
    match presence() {
        // Of the first: libtorch's words for any other speak of the index.
        Presence::Loaded => Err(refusal(Device::Cuda(0))),
        Presence::Driverless(words) => Err(format!("no NVIDIA driver: {words}")),
        Presence::Refused(path, words) => Err(format!("{} cannot be loaded: {words}", path.display())),
        Presence::Missing => Err("this libtorch was built without CUDA".to_string()),
    }
}

fn presence() -> &'static Presence {
    static PRESENCE: OnceLock<Presence> = OnceLock::new();
    PRESENCE.get_or_init(look)
}

/// Elsewhere than on Linux the linker keeps what the build asks for, or there is no CUDA at all.
#[cfg(not(target_os = "linux"))]
fn look() -> Presence {
    if cfg!(target_os = "macos") { Presence::Missing } else { Presence::Loaded }
}

#[cfg(target_os = "linux")]
fn look() -> Presence {
    // Without the list nothing can be said; libtorch's own words must do.
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return Presence::Loaded;
    };
    if mapped(&maps, LIBRARY).is_some() {
        return Presence::Loaded;
    }
    let beside = mapped(&maps, "libtorch_cpu.so").map(|path| path.with_file_name(LIBRARY));
    let Some(path) = beside.filter(|path| path.exists()) else {
        return Presence::Missing;
    };
    if let Err(words) = keep_loaded(Path::new(DRIVER)) {
        return Presence::Driverless(words);
    }
    match keep_loaded(&path) {
        Ok(()) => Presence::Loaded,
        Err(words) => Presence::Refused(path, words),
    }
}

/// Returns the path of a library in the list of what a process has mapped (proc_pid_maps(5)).
#[cfg(target_os = "linux")]
fn mapped<'a>(maps: &'a str, name: &str) -> Option<&'a Path> {
    let paths = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    paths.into_iter().find(|path| path.file_name().is_some_and(|file| file == name))
}

/// Loads a library by its path, or by its name from where the system keeps libraries, for as long as the process lives.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "loading a library runs its initialisers")]
fn keep_loaded(path: &Path) -> Result<(), String> {
    // SAFETY: it is the driver, or belongs to the libtorch that is loaded already; PyTorch loads both in the same way. The
    // initialisers register CUDA with libtorch and touch nothing of ours.
    let library = unsafe { libloading::Library::new(path) }
        .map_err(|error| error.source().map_or(error.to_string(), ToString::to_string))?;
    // What it has registered must never be unloaded.
    std::mem::forget(library);
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_found_in_the_list_by_its_whole_name() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 42   /opt/my torch/lib/libtorch_cpu.so\n\
                    7f02-7f03 rw-p 00000000 00:00 0    [heap]\n\
                    7f04-7f05 r--p 00000000 08:01 43   /opt/my torch/lib/libtorch_cuda_linalg.so\n\
                    7f06-7f07 rw-p 00000000 00:00 0\n";
        assert_eq!(mapped(maps, "libtorch_cpu.so"), Some(Path::new("/opt/my torch/lib/libtorch_cpu.so")));
        assert_eq!(mapped(maps, "libtorch_cuda.so"), None);
    }

    fn maps() -> String {
        std::fs::read_to_string("/proc/self/maps").expect("Linux")
    }

    /// One test, because what a process has loaded it keeps.
    #[test]
    fn cuda_is_loaded_where_it_is_of_use_and_can_be_where_the_linker_dropped_it() {
        load();
        let before = maps();
        let beside =
            mapped(&before, "libtorch_cpu.so").expect("this program uses libtorch").with_file_name(LIBRARY);
        let driver = keep_loaded(Path::new(DRIVER)).is_ok();
        assert_eq!(mapped(&before, LIBRARY).is_some(), beside.exists() && driver, "{:?}", presence());
        assert_eq!(matches!(presence(), Presence::Missing), !beside.exists(), "{:?}", presence());
        if beside.exists() {
            keep_loaded(&beside).expect("a sound library");
        }
        assert_eq!(mapped(&maps(), LIBRARY).is_some(), beside.exists());
    }

    #[test]
    fn what_cannot_be_loaded_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(LIBRARY);
        std::fs::write(&path, "no library").expect("a file");
        let words = keep_loaded(&path).expect_err("text");
        assert!(words.contains(LIBRARY), "{words}");
    }

    #[test]
    fn whatever_is_missing_is_said() {
        let reason = check(4000).expect_err("no machine has so many");
        assert!(reason.contains("CUDA") || reason.contains("NVIDIA"), "{reason}");
    }
}
