//! Killed at every step: the driver dies before each of its calls that change anything, in every operation of a
//! volume's life, and the next call, of a driver that was started again, finishes the work. So does a rotation, which
//! is a program of its own beside the driver.
//!
//! Lives without a kill are the measure: what the kernel and the pool hold after each step is the same in every life. A
//! Ready volume is never formatted: no mkfs is started, the volume key stays, and what a pod has written is there.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;
use tonic::Code;
use tonic::Status;

use crate::broker::KEY_URI;
use crate::broker::NEXT_KEY_URI;
use crate::driver::Kind;
use crate::formats;
use crate::leaks::Listing;
use crate::rotation;
use crate::rotation::Rotation;
use crate::scene::Scene;
use crate::scene::wait_until;
use crate::soak::Part;
use crate::soak::Variant;
use crate::soak::figure;
use crate::soak::variants;
use crate::tracer::Tracer;
use crate::volume::Volume;
use crate::volume::needle;

/// A complete soak kills a volume with ext4 before each call, and the other kinds, whose calls are nearly the same and
/// whose lives are longer, before each one of so many.
const fn every(kind: Kind) -> usize {
    match kind {
        Kind::Ext4 => 1,
        Kind::Block => 2,
        Kind::Xfs => 4,
    }
}
/// How many lives with kills each variant has in the sample.
const SAMPLE: usize = 3;
/// Moments of each step at which a complete soak kills, beside every call.
const MOMENTS: usize = 4;
/// How long the kubelet would go on with answers that say that it should.
const PATIENCE: Duration = Duration::from_secs(60);
/// Notes for display: a stage that was killed after the record was complete does not write them again.
const NOTES: [&str; 2] = ["release.json", "refusal.json"];
/// Where a raw volume keeps what was written to it.
const OFFSET_BYTES: u64 = 1 << 20;

/// What happens to a volume in its life, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    FirstStage,
    Rotate,
    Unstage,
    Restage,
    SecondUnstage,
    Delete,
}

const LIFE: [Step; 6] =
    [Step::FirstStage, Step::Rotate, Step::Unstage, Step::Restage, Step::SecondUnstage, Step::Delete];

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::FirstStage => "first stage",
            Self::Rotate => "rotation",
            Self::Unstage => "unstage",
            Self::Restage => "restage",
            Self::SecondUnstage => "unstage after a restage",
            Self::Delete => "deletion",
        }
    }

    fn act(self, scene: &Scene, volume: &Volume) -> Result<(), Status> {
        match self {
            Self::FirstStage | Self::Restage => scene.driver().stage(&volume.id, volume.kind),
            Self::Rotate => {
                let output = rotation::rotate(scene, volume, NEXT_KEY_URI);
                let errors =
                    || Status::unknown(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
                output.status.success().then_some(()).ok_or_else(errors)
            }
            Self::Unstage | Self::SecondUnstage => scene.driver().unstage(&volume.id),
            Self::Delete => scene.driver().delete(&volume.id),
        }
    }

    /// Calls again while the answer is one that makes the kubelet do so.
    fn insist(self, scene: &Scene, volume: &Volume) -> Result<(), Status> {
        let start = Instant::now();
        loop {
            let Err(status) = self.act(scene, volume) else { return Ok(()) };
            let passes = matches!(status.code(), Code::Aborted | Code::Unavailable | Code::DeadlineExceeded);
            if !passes || start.elapsed() > PATIENCE {
                return Err(status);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// When the driver dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kill {
    /// Before its call of this number, from 1, that changes anything; after the answer if it needs fewer.
    BeforeCall(usize),
    /// This long after the operation began, wherever it is; after the answer if it is faster.
    After(Duration),
}

impl Kill {
    /// Does `act`, in which the process `pid` is to die. Returns the tracer too, if the process has one.
    fn strike<T>(self, pid: u32, act: impl FnOnce() -> T) -> (T, Option<Tracer>) {
        match self {
            Self::BeforeCall(number) => {
                let tracer = Tracer::attach(pid, number);
                (act(), Some(tracer))
            }
            Self::After(moment) => thread::scope(|scope| {
                scope.spawn(move || {
                    thread::sleep(moment);
                    end(pid);
                });
                (act(), None)
            }),
        }
    }
}

/// How a step went.
#[derive(Clone, Debug)]
struct Seen {
    /// What there was afterwards.
    left: Listing,
    took: Duration,
    /// How many calls were made that change anything, if they were counted.
    calls: usize,
    /// Whether the driver died before it could answer.
    is_cut_short: bool,
}

/// What a pod wrote into a Ready volume, and the digest of the volume key.
struct Kept {
    contents: Vec<u8>,
    key_digest: String,
}

impl Kept {
    fn write(volume: &Volume) -> Self {
        let contents = needle();
        let file = File::options().create(volume.kind != Kind::Block).write(true).open(kept_in(volume));
        let written = file.and_then(|file| file.write_all_at(&contents, OFFSET_BYTES).and_then(|()| file.sync_all()));
        written.expect("a staged volume can be written to");
        Self { contents, key_digest: volume.key_digest() }
    }

    fn must_be_in(&self, volume: &Volume, when: &str) {
        let mut found = vec![0; self.contents.len()];
        let read = File::open(kept_in(volume)).and_then(|file| file.read_exact_at(&mut found, OFFSET_BYTES));
        read.unwrap_or_else(|error| panic!("{when}: what was written cannot be read: {error}"));
        assert_eq!(found, self.contents, "{when}: what was written is gone");
    }
}

fn kept_in(volume: &Volume) -> PathBuf {
    if volume.kind == Kind::Block { volume.mapper() } else { volume.file("kept") }
}

/// What must never be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wrong {
    leaks: usize,
    formats_of_a_ready_volume: usize,
}

/// A volume on its way from its creation to its deletion.
struct Life<'a> {
    scene: &'a mut Scene,
    wrong: &'a mut Wrong,
    volume: Volume,
    luks_uuid: String,
    kept: Option<Kept>,
}

impl<'a> Life<'a> {
    /// A whole life, with the kill that `kills` says in each step. After each there must be left what `measure` says.
    fn live(
        scene: &'a mut Scene,
        wrong: &'a mut Wrong,
        (profile, kind): Variant,
        kills: [Option<Kill>; LIFE.len()],
        measure: Option<&[Seen]>,
    ) -> Vec<Seen> {
        let volume = Volume::create_in(scene, &[("profile", profile.as_str())], "life", kind);
        let luks_uuid = volume.recorded("luks_uuid").replace('-', "");
        let mut life = Self { scene, wrong, volume, luks_uuid, kept: None };
        let steps = LIFE.into_iter().zip(kills).enumerate();
        steps.map(|(number, (step, kill))| life.take(step, kill, measure.map(|seen| &seen[number].left))).collect()
    }

    fn take(&mut self, step: Step, kill: Option<Kill>, measure: Option<&Listing>) -> Seen {
        let when = format!("{} of {:?} {} with {kill:?}", step.name(), self.volume.kind, self.volume.id);
        let start = Instant::now();
        let (calls, is_cut_short) = self.unformatted_if_ready(&when, |life| match kill {
            None => {
                step.act(life.scene, &life.volume).unwrap_or_else(|status| panic!("{when}: {status:?}"));
                (0, false)
            }
            Some(kill) => life.strike(step, kill, &when),
        });
        let took = start.elapsed();
        if kill.is_some() {
            self.unformatted_if_ready(&when, |life| {
                step.insist(life.scene, &life.volume).unwrap_or_else(|status| panic!("{when}: {status:?}"));
            });
        }
        match (step, &self.kept) {
            (Step::FirstStage, _) => self.kept = Some(Kept::write(&self.volume)),
            (Step::Restage, Some(kept)) => kept.must_be_in(&self.volume, &when),
            (Step::Rotate, Some(kept)) => {
                kept.must_be_in(&self.volume, &when);
                let opens = [KEY_URI, NEXT_KEY_URI].map(|uri| rotation::stock_opens(self.scene, &self.volume, uri));
                assert_eq!(opens, [false, true], "{when}: what the old and the new secret open");
            }
            _ => {}
        }
        if step != Step::Delete {
            let key_digest = self.kept.as_ref().map(|kept| &kept.key_digest);
            assert_eq!(key_digest, Some(&self.volume.key_digest()), "{when}: another volume key");
        }
        Seen { left: self.left(measure, &when), took, calls, is_cut_short }
    }

    /// Does `work`. A volume that was Ready before is not formatted in it.
    fn unformatted_if_ready<T>(&mut self, when: &str, work: impl FnOnce(&mut Self) -> T) -> T {
        let (is_ready, before) = (self.volume.is_ready(), formats::count());
        let done = work(self);
        if is_ready && formats::count() != before {
            println!("{when}: a Ready volume was formatted");
            self.wrong.formats_of_a_ready_volume += 1;
        }
        done
    }

    /// Lets the process that does `step` die, and sees to it that there is a driver. Returns how many calls were counted,
    /// and whether the process died before its answer.
    fn strike(&mut self, step: Step, kill: Kill, when: &str) -> (usize, bool) {
        if step == Step::Rotate {
            return self.strike_rotation(kill, when);
        }
        let (answer, tracer) = kill.strike(self.scene.driver().pid(), || step.act(self.scene, &self.volume));
        if let Err(status) = &answer {
            wait_until(&format!("{when}: {status:?}, and the end of the driver"), || self.scene.driver_is_dead());
        }
        self.scene.restart_driver();
        (tracer.map_or(0, Tracer::calls), answer.is_err())
    }

    /// The same for a rotation. Whatever it leaves, the volume opens with it, and what was written is there.
    fn strike_rotation(&mut self, kill: Kill, when: &str) -> (usize, bool) {
        let mut rotation = Rotation::held(self.scene, &self.volume, NEXT_KEY_URI);
        let ((), tracer) = kill.strike(rotation.pid(), || rotation.run());
        let output = rotation.end();
        let is_cut_short = output.status.signal().is_some();
        assert!(is_cut_short || output.status.success(), "{when}: {output:?}");
        for step in [Step::Unstage, Step::Restage] {
            step.insist(self.scene, &self.volume).unwrap_or_else(|status| panic!("{when}, then {step:?}: {status:?}"));
        }
        self.kept.as_ref().expect("written after the first stage").must_be_in(&self.volume, when);
        (tracer.map_or(0, Tracer::calls), is_cut_short)
    }

    /// What is left now; the same as in `measure` as soon as what ends in the background has ended.
    fn left(&mut self, measure: Option<&Listing>, when: &str) -> Listing {
        let list = || Listing::take(self.scene.pool(), None).of_any(&self.luks_uuid, &NOTES);
        let (start, mut left) = (Instant::now(), list());
        let measure = measure.unwrap_or(&left).clone();
        while left != measure && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(50));
            left = list();
        }
        if left != measure {
            println!("{when}: not as in a life without a kill:\n{}", left.changes(&measure).join("\n"));
            self.wrong.leaks += 1;
        }
        left
    }
}

fn end(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process id")).expect("not 0");
    kill_process(pid, Signal::KILL).expect("nobody has waited for the driver");
}

/// The kills of one step, which takes as long as `took`: in a soak before `every` so many-th call, then at moments over
/// its duration; else a few of them.
fn kills_of(took: Duration, calls: usize, every: Option<usize>) -> Vec<Kill> {
    let spread = |count: usize| (0..count).map(move |number| (2 * number + 1) as f64 / (2 * count) as f64);
    let at = |fraction| Kill::After(took.mul_f64(fraction));
    match every {
        Some(every) => (1..=calls).step_by(every).map(Kill::BeforeCall).chain(spread(MOMENTS).map(at)).collect(),
        None => {
            let before = |fraction| Kill::BeforeCall((calls as f64 * fraction) as usize + 1);
            spread(SAMPLE - 1).map(before).chain(spread(1).map(at)).collect()
        }
    }
}

/// Kills in the lives of `variant` that belong to `part`, or in a sample.
fn kill_in_lives_of(variant: Variant, part: Option<Part>) {
    formats::watch();
    let mut scene = Scene::new();
    scene.broker.offer_next();
    let mut wrong = Wrong::default();
    let measure = Life::live(&mut scene, &mut wrong, variant, [None; LIFE.len()], None);
    // None of these is reached, and the driver dies after each answer.
    let never = [Some(Kill::BeforeCall(usize::MAX)); LIFE.len()];
    let counted = Life::live(&mut scene, &mut wrong, variant, never, Some(&measure));
    let every = part.map(|_| every(variant.1));
    // The first life of a scene is slow, because much is done for the first time; a tracer makes the second one slow.
    let steps = measure.iter().zip(&counted);
    let kills: Vec<_> = steps.map(|(step, other)| kills_of(step.took.min(other.took), other.calls, every)).collect();
    let lives = kills.iter().map(Vec::len).max().unwrap_or_default();

    let mut tally: BTreeMap<String, usize> = BTreeMap::new();
    let (mut before_calls, mut late) = (0, 0);
    for life in part.unwrap_or(Part::WHOLE).take(0..lives) {
        let kills: [_; LIFE.len()] = std::array::from_fn(|step| kills[step].get(life).copied());
        let seen = Life::live(&mut scene, &mut wrong, variant, kills, Some(&measure));
        for ((step, kill), seen) in LIFE.into_iter().zip(kills).zip(seen) {
            let how = match kill {
                None => continue,
                Some(_) if !seen.is_cut_short => "after the answer",
                Some(Kill::BeforeCall(_)) => "before a call",
                Some(Kill::After(_)) => "at a moment",
            };
            if matches!(kill, Some(Kill::BeforeCall(_))) {
                before_calls += 1;
                late += usize::from(!seen.is_cut_short);
            }
            *tally.entry(format!("{}, killed {how}", step.name())).or_default() += 1;
        }
    }
    assert!(late * 10 <= before_calls, "{late} of {before_calls} calls were not reached");
    figure("kills", tally.values().sum());
    for (what, count) in tally {
        figure(what, count);
    }
    if part.is_none_or(|part| part.number == 0) {
        for (step, seen) in LIFE.iter().zip(&counted) {
            figure(format!("{}, calls that change something", step.name()), seen.calls);
        }
    }
    figure("leaks", wrong.leaks);
    figure("formats of a Ready volume", wrong.formats_of_a_ready_volume);
    assert_eq!(wrong, Wrong::default(), "in {variant:?}");
    scene.end();
}

#[test]
fn a_driver_killed_at_any_step_of_a_volumes_life_leaks_nothing_and_formats_no_ready_volume() {
    match Part::of_environment() {
        Some(part) => {
            let (variant, part) = part.deal(&variants());
            kill_in_lives_of(variant, Some(part));
        }
        // XFS takes longest, and its steps are those of ext4.
        None => {
            let quick = variants().into_iter().filter(|(_, kind)| *kind != Kind::Xfs);
            quick.for_each(|variant| kill_in_lives_of(variant, None));
        }
    }
}

#[test]
fn a_driver_killed_while_a_filesystem_is_made_leaves_no_program_behind() {
    formats::watch();
    let mut scene = Scene::new();
    let volume = Volume::create(&scene, "orphan", Kind::Xfs);
    let (pid, before) = (scene.driver().pid(), formats::count());
    let answer = thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("the start of mkfs", || formats::count() > before);
            end(pid);
        });
        scene.driver().stage(&volume.id, volume.kind)
    });
    answer.expect_err("nobody was left to answer");
    scene.restart_driver();
    volume.stage(&scene);
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_format_is_seen() {
    formats::watch();
    let scene = Scene::new();
    let before = formats::count();
    let volume = Volume::create_staged(&scene, "format", Kind::Ext4);
    assert_eq!(formats::count(), before + 1);
    volume.unstage(&scene);
    volume.stage(&scene);
    assert_eq!(formats::count(), before + 1);
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}
