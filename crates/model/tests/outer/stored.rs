//! The committed state on disk: exact resume, and the refusal of files that are damaged or of another run.

use std::collections::BTreeMap;
use std::fs;

use trestle_model::outer::{CodecKind, Layout, Outer, OuterConfig, Rule};

use crate::swarm::{KINDS, NESTEROV, config, exchange, moved, noise, replica};

fn labels() -> BTreeMap<String, String> {
    [("step".to_string(), "20".to_string())].into()
}

fn step(outer: &mut Outer, step: u64) {
    outer.begin(step, moved(outer, 0, step));
    exchange(std::slice::from_mut(outer), &[1]);
}

#[test]
fn a_resumed_replica_goes_on_as_the_one_that_stayed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("outer.safetensors");
    let ramped = Rule::Nesterov {
        learning_rate: 0.7,
        momentum: 0.9,
        ramp: Some(trestle_model::outer::Ramp { from: 0.5, steps: 4 }),
    };
    for kind in KINDS {
        for rule in [ramped, Rule::Mean] {
            let mut stayed = replica(&config(rule, kind));
            // At first nothing is owed, and the file has no list of it.
            for first in [0, 2] {
                step(&mut stayed, first);
                stayed.begin(99, moved(&stayed, 5, 5));
                stayed.save(&path, &labels()).expect("the folder is writable");
                stayed.restore();
                let mut resumed = replica(&config(rule, kind));
                resumed.begin(7, moved(&resumed, 1, 1));
                assert_eq!(resumed.load(&path).expect("its own file"), labels());
                assert_eq!((resumed.digests(), resumed.committed()), (stayed.digests(), stayed.committed()));
                for outer in [&mut stayed, &mut resumed] {
                    step(outer, first + 1);
                }
                assert_eq!(resumed.digests(), stayed.digests(), "{kind:?} {rule:?}");
            }
        }
    }
}

#[test]
fn a_newcomer_takes_over_all_but_the_debts() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("outer.safetensors");
    let mut old = replica(&config(NESTEROV, CodecKind::Int8));
    step(&mut old, 0);
    old.save(&path, &labels()).expect("the folder is writable");
    let mut new = replica(&config(NESTEROV, CodecKind::Int8));
    new.load(&path).expect("a replica of the same stage");
    assert_eq!(new.digests(), old.digests());
    new.forget_owed();
    assert!(new.owed().is_empty() && !old.owed().is_empty());
    assert_eq!((new.digests().momentum, new.committed()), (old.digests().momentum, 1));
}

#[test]
fn files_that_do_not_belong_here_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("outer.safetensors");
    let settings = config(NESTEROV, CodecKind::Int8);
    let mut outer = replica(&settings);
    step(&mut outer, 0);
    outer.save(&path, &labels()).expect("the folder is writable");
    let before = |outer: &Outer| (outer.digests(), outer.committed());
    let mut others = [
        (replica(&OuterConfig { error_decay: 0.5, ..settings.clone() }), "outer.config"),
        (replica(&config(NESTEROV, CodecKind::Bf16)), "outer.config"),
        (Outer::new(settings, Layout::new(&[vec![3, 4]]), noise(12, 1)).expect("valid"), "outer.layout"),
    ];
    for (other, words) in &mut others {
        let untouched = before(other);
        let error = other.load(&path).expect_err("another run's");
        assert!(error.to_string().contains(&format!("saved {words} is")), "{error}");
        assert_eq!(before(other), untouched);
    }
    let mut bytes = fs::read(&path).expect("it was written");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).expect("the folder is writable");
    let untouched = before(&outer);
    let error = outer.load(&path).expect_err("one bit differs");
    assert!(error.to_string().contains("corrupt"), "{error}");
    assert_eq!(before(&outer), untouched);
    let own = [("outer.config".to_string(), String::new())].into();
    let error = outer.save(&path, &own).expect_err("a label of ours");
    assert!(error.to_string().contains("cannot hold the name outer.config"), "{error}");
}
