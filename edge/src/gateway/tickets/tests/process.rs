//! Edge's store in a process of its own, which is killed: the log stays as it lay.

use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use super::*;

const FOLDER: &str = "EDGE_TEST_TICKETS_PROCESS";
const MEMORY: &str = "EDGE_TEST_TICKETS_MEMORY";

/// The parent's end.
pub(super) struct Edge {
    process: Child,
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Edge {
    /// Edge is started with its store in `folder`.
    pub(super) fn start(folder: &Path) -> Self {
        Self::start_by(Command::new(std::env::current_exe().unwrap()), folder, None)
    }

    pub(super) fn start_by(mut program: Command, folder: &Path, memory: Option<&Path>) -> Self {
        let mut process = program
            .args(["--exact", "gateway::tickets::tests::process::edge_of_the_other_stories", "--nocapture"])
            .env(FOLDER, folder)
            .env(MEMORY, memory.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let words = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut edge = Self { process, words, answers };
        edge.wait_for("ready");
        edge
    }

    fn wait_for(&mut self, word: &str) -> String {
        for _ in 0..100 {
            let mut line = String::new();
            assert!(self.answers.read_line(&mut line).unwrap() > 0, "it ended before it said {word:?}");
            if let Some((_, rest)) = line.split_once(&format!("said {word}")) {
                return rest.trim().to_owned();
            }
        }
        panic!("it never says {word:?}");
    }

    fn say(&mut self, word: &str, rest: &str) -> String {
        writeln!(self.words, "{word} {rest}").unwrap();
        self.wait_for(word)
    }

    /// The life that all the keys with this stem and these numbers get.
    pub(super) fn ask_in_order(&mut self, stem: &str, numbers: Range<u32>, life: Life) -> Option<Life> {
        let told = self.say("ask", &format!("{stem} {} {} {life}", numbers.start, numbers.end));
        (told != "none").then(|| told.parse().unwrap())
    }

    pub(super) fn ask_many(&mut self, stem: &str, count: u32, life: Life) -> Option<Life> {
        self.ask_in_order(stem, 0..count, life)
    }

    pub(super) fn ask(&mut self, key: &str, life: Life) -> Option<Life> {
        self.ask_many(key, 1, life)
    }

    pub(super) fn words(&mut self) -> String {
        self.say("words", "")
    }

    pub(super) fn is_in_doubt(&mut self) -> bool {
        self.say("doubt", "") == "true"
    }

    /// Both vaults are together.
    pub(super) fn settle(&mut self) {
        assert!(self.is_in_doubt(), "{}", self.words());
        self.say("settle", "");
        assert!(!self.is_in_doubt(), "{}", self.words());
    }

    pub(super) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Ends in order.
    pub(super) fn end(mut self) {
        self.say("end", "");
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _status = self.process.wait();
    }
}

/// No story itself: what [`Edge`] starts.
#[test]
fn edge_of_the_other_stories() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let memory = std::env::var(MEMORY).unwrap();
    let memory = (!memory.is_empty()).then(|| PathBuf::from(memory));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (tickets, _registry) = start(Settings { memory, ..settings(Path::new(&folder)) });
    let answer = |word: &str, rest: &str| println!("\nsaid {word} {rest}");
    answer("ready", "");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["ask", stem, start, end, life] => {
                let numbers: Range<u32> = start.parse().unwrap()..end.parse().unwrap();
                let keys = numbers.map(|number| format!("{stem}-{number}"));
                let lives = tickets.write_down("INV", keys.collect(), life.parse().unwrap());
                let lives = runtime.block_on(lives);
                assert!(lives.iter().all(|life| *life == lives[0]), "{lives:?}");
                answer("ask", &lives[0].map_or("none".to_owned(), |life| life.to_string()));
            }
            ["words"] => answer("words", &tickets.words()),
            ["doubt"] => answer("doubt", &tickets.doubt().is_some().to_string()),
            ["settle"] => {
                tickets.were_together(tickets.doubt().unwrap());
                // Through the same queue: once it is answered, the word has arrived.
                for turn in ["first", "second"] {
                    runtime.block_on(tickets.write_down("NONE", vec![turn.to_owned()], FIRST));
                }
                answer("settle", "");
            }
            ["end"] => {
                runtime.block_on(tickets.end());
                answer("end", "");
                return;
            }
            _ => panic!("{line}"),
        }
    }
}
