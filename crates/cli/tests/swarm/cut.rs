//! A peer behind a link that is cut and mended, in network namespaces of its own. Needs root and `ip`; says so where it has
//! neither.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::churn::{changes, check_exact};
use crate::command::Place;

/// Kept for tests of networks (RFC 2544).
const HUB: &str = "198.18.0.1";
const HUB_OF_LEAF: &str = "198.18.1.1";
const LEAF: &str = "198.18.1.2";

fn ip(words: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(words).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {}: {said}", words.join(" "))) }
}

/// A namespace for everyone, and one for a peer behind a link. Removed at the end, and their links with them.
struct Namespaces {
    hub: String,
    leaf: String,
}

impl Namespaces {
    fn new() -> Result<Self, String> {
        let name = |part| format!("trestle-{}-{part}", std::process::id());
        let made = Self { hub: name("hub"), leaf: name("leaf") };
        let (hub, leaf) = (made.hub.as_str(), made.leaf.as_str());
        for name in [hub, leaf] {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        ip(&["link", "add", "eth0", "netns", leaf, "type", "veth", "peer", "name", "leaf", "netns", hub])?;
        ip(&["-n", hub, "address", "add", &format!("{HUB}/32"), "dev", "lo"])?;
        ip(&["-n", hub, "address", "add", &format!("{HUB_OF_LEAF}/24"), "dev", "leaf"])?;
        ip(&["-n", leaf, "address", "add", &format!("{LEAF}/24"), "dev", "eth0"])?;
        ip(&["-n", hub, "link", "set", "leaf", "up"])?;
        ip(&["-n", leaf, "link", "set", "eth0", "up"])?;
        ip(&["-n", leaf, "route", "add", "default", "via", HUB_OF_LEAF])?;
        Ok(made)
    }

    /// Takes the link down or up, at the hub's end: there no route is lost with it.
    fn link(&self, state: &str) {
        ip(&["-n", &self.hub, "link", "set", "leaf", state]).unwrap();
    }

    fn trestle(&self, namespace: &str, address: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, env!("CARGO_BIN_EXE_trestle")]).args(arguments);
        command.args(["--listen", &format!("{address}:0")]).stdin(Stdio::null()).stderr(Stdio::null());
        command
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in [&self.hub, &self.leaf] {
            // One that was not made cannot be removed.
            let _ = ip(&["netns", "del", name]);
        }
    }
}

/// The processes of a swarm, ended with it whatever happens.
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn read_until(output: &mut BufReader<ChildStdout>, events: &mut Vec<Value>, until: impl Fn(&Value) -> bool) {
    let mut line = String::new();
    while output.read_line(&mut line).unwrap() > 0 {
        events.push(serde_json::from_str(&line).unwrap());
        line.clear();
        if until(&events[events.len() - 1]) {
            return;
        }
    }
}

#[test]
fn a_peer_whose_link_is_cut_is_gone_around_and_comes_back_once_it_is_mended() {
    let namespaces = match Namespaces::new() {
        Ok(namespaces) => namespaces,
        Err(reason) => {
            eprintln!("SKIPPED, nothing was tested: a cut link needs root and network namespaces: {reason}");
            return;
        }
    };
    let place = Place::new();
    let (run_file, run) = (place.run_file(), place.run_dir("run"));
    let mut serve =
        namespaces.trestle(&namespaces.hub, HUB, &["serve", run_file.to_str().unwrap(), "--json"]);
    serve.args(["--dir", run.to_str().unwrap(), "--replicas", "3", "--steps", "200"]);
    for value in ["pipeline.stages=2", "sync.inner_steps=4", "evaluation.every=0", "checkpoint.every=20"] {
        serve.args(["--set", value]);
    }
    let mut children = Children(vec![serve.stdout(Stdio::piped()).spawn().unwrap()]);
    let mut output = BufReader::new(children.0[0].stdout.take().unwrap());
    let mut ticket = String::new();
    output.read_line(&mut ticket).unwrap();
    for number in 0..6 {
        let (namespace, address) =
            if number == 0 { (&namespaces.leaf, LEAF) } else { (&namespaces.hub, HUB) };
        let mut join = namespaces.trestle(namespace, address, &["join", ticket.trim()]);
        join.args(["--threads", "1", "--peak-flops", "1e9", "--dir"]);
        children.0.push(join.arg(place.run_dir(&format!("peer-{number}"))).spawn().unwrap());
    }
    let mut events = Vec::new();
    read_until(&mut output, &mut events, |event| event["event"] == "step" && event["step"] == 10);
    namespaces.link("down");
    read_until(&mut output, &mut events, |event| event["event"] == "removed");
    namespaces.link("up");
    read_until(&mut output, &mut events, |_| false);
    check_exact(&place, &events, 200 * 4 * 3);
    let (removed, seated) = (changes(&events, "removed"), changes(&events, "seated"));
    assert_eq!((removed.len(), seated.len()), (1, 1), "only the peer behind the link, and it came back");
    assert_eq!(removed[0]["peer"], seated[0]["peer"]);
    for child in &mut children.0 {
        assert!(child.wait().unwrap().success());
    }
}
