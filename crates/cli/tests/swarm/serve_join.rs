//! A coordinator and workers started one by one, as on several machines, with a stranger who sends rubbish meanwhile.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Stdio};

use trestle_net::Ticket;

use serde_json::Value;

use crate::command::{Place, losses, only, succeed, trestle};

struct Serving {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    ticket: Ticket,
}

fn serve(place: &Place, run: &str, more: &[&str]) -> Serving {
    let mut command = trestle(&["serve"]);
    command.arg(place.run_file()).arg("--dir").arg(place.run_dir(run));
    command.args(["--listen", "127.0.0.1:0", "--json"]).args(more);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut ticket = String::new();
    output.read_line(&mut ticket).unwrap();
    Serving { child, output, ticket: ticket.trim().parse().unwrap() }
}

fn join(place: &Place, ticket: &Ticket, name: &str, more: &[&str]) -> std::process::Command {
    let mut command = trestle(&["join", &ticket.to_string()]);
    command.arg("--dir").arg(place.run_dir(name)).args(["--listen", "127.0.0.1:0", "--threads", "1"]);
    command.args(["--peak-flops", "1e9"]).args(more);
    command
}

#[test]
fn peers_join_with_a_ticket_and_rubbish_on_the_socket_disturbs_nobody() {
    let place = Place::new();
    let expected = losses(&succeed(&mut place.train("local", &["--steps", "20"])));
    let mut serving = serve(&place, "served", &["--steps", "20"]);
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = serving.ticket.address.sockets()[0];
    let throw_rubbish = || {
        for n in 0..200_u32 {
            let bytes: Vec<u8> = (0..n * 5 % 1200).map(|i| (i * 31 + n * 17) as u8).collect();
            stranger.send_to(&bytes, target).unwrap();
        }
    };
    throw_rubbish();
    let mut workers: Vec<Child> = (0..4)
        .map(|n| {
            let mut command = join(&place, &serving.ticket, &format!("peer-{n}"), &[]);
            command.stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let mut events = Vec::new();
    for line in (&mut serving.output).lines() {
        throw_rubbish();
        events.push(serde_json::from_str(&line.unwrap()).unwrap());
    }
    assert!(serving.child.wait().unwrap().success());
    for worker in &mut workers {
        assert!(worker.wait().unwrap().success());
    }
    assert_eq!(losses(&events), expected, "who holds which stage, and who starts it, changes no bit");
}

#[test]
fn a_ticket_of_another_run_is_refused_by_name() {
    let place = Place::new();
    let mut serving = serve(&place, "here", &[]);
    let mut other = serving.ticket.clone();
    other.run_digest.0[0] ^= 1;
    let output = join(&place, &other, "stranger", &[]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("run digests differ") && words.contains("hint: ask the coordinator"), "{words}");
    let output = join(&place, &serving.ticket, "far", &["--stage", "9"]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("stage 9 does not exist, the run has 4"), "{words}");
    serving.child.kill().unwrap();
    serving.child.wait().unwrap();
}

/// Reads the events of a coordinator, through `until` at the most; gives them, and whether it was reached.
fn read_until(serving: &mut Serving, events: &mut Vec<Value>, until: impl Fn(&Value) -> bool) -> bool {
    let mut line = String::new();
    while serving.output.read_line(&mut line).unwrap() > 0 {
        let event: Value = serde_json::from_str(&line).unwrap();
        line.clear();
        let reached = until(&event);
        events.push(event);
        if reached {
            return true;
        }
    }
    false
}

#[test]
fn a_killed_coordinator_comes_back_at_its_address_and_its_workers_find_it() {
    let place = Place::new();
    let options =
        ["--steps", "120", "--replicas", "2", "--set", "pipeline.stages=2", "--set", "sync.inner_steps=5"];
    let mut serving = serve(&place, "served", &options);
    let mut workers: Vec<Child> = (0..4)
        .map(|n| {
            let mut command = join(&place, &serving.ticket, &format!("peer-{n}"), &["--json"]);
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let mut events = Vec::new();
    assert!(read_until(&mut serving, &mut events, |event| event["event"] == "step" && event["step"] == 30));
    serving.child.kill().unwrap();
    serving.child.wait().unwrap();
    // What it had printed before it died.
    read_until(&mut serving, &mut events, |_| false);
    let ticket = serving.ticket.to_string();
    let mut serving = serve(&place, "served", &[&options[..], &["--resume"]].concat());
    assert_eq!(serving.ticket.to_string(), ticket, "peers look for it there");
    let before = losses(&events);
    let mut after = Vec::new();
    read_until(&mut serving, &mut after, |_| false);
    assert!(serving.child.wait().unwrap().success());
    for worker in &mut workers {
        let said = std::io::read_to_string(worker.stdout.take().unwrap()).unwrap();
        assert!(worker.wait().unwrap().success(), "{said}");
        assert_eq!(said.matches(r#""event":"placed""#).count(), 1, "nobody lost its place: {said}");
    }
    let ledger = only(&after, "ledger");
    let planned = 120 * 4 * 2;
    assert_eq!(ledger["credited"], serde_json::json!([planned, planned]), "{ledger}");
    // What was summed up before it died may be summed up again, from the last commit on.
    let after = losses(&after);
    let (last_before, first_after) = (before.last().unwrap().0, after[0].0);
    assert!(first_after <= last_before + 1, "no step is left out: {last_before}, {first_after}");
    assert!(first_after + 8 > last_before, "nothing is repeated from before the last commit: {first_after}");
    assert_eq!(after.last().unwrap().0, 119);
}
