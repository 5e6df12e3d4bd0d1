//! The page as a browser shows it: Chromium without a window, asked over its debugging protocol.
//!
//! ```text
//!   this test ── JSON, a zero byte behind each message ──▶ file descriptor 3 ─┐
//!             ◀─ answers and events ────────────────────── file descriptor 4 ─┴ Chromium ── file://… ── the page
//! ```
//! Scripts are switched off for the page, names lead nowhere, and every request is counted. What can be measured is
//! asserted; the rest is for eyes: screenshots are left in `target/tmp/report`.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::page::pages;

/// Until an answer or an event is given up; each takes some milliseconds.
const ANSWER_SECONDS: u64 = 60;

/// A telephone held upright, and a desk.
const WIDTHS: [u32; 2] = [400, 1200];

const SCHEMES: [&str; 2] = ["light", "dark"];

/// The samples of which screenshots are left: between them they have every picture.
const ALBUM: [&str; 6] = ["run", "invalid", "scarce", "search", "ab", "compared"];

/// Web Content Accessibility Guidelines 2.2, 1.4.3 and 1.4.11.
const TEXT_CONTRAST_MIN: f64 = 4.5;
const LINE_CONTRAST_MIN: f64 = 3.0;

/// Smaller letters are not read on a telephone.
const LETTERS_PX_MIN: f64 = 10.0;

/// What a page looks like, as JSON. All details are opened first: the tables must fit too.
const LOOK: &str = r#"(() => {
  document.querySelectorAll('details').forEach(details => details.open = true);
  const channels = color => color.match(/[\d.]+/g).map(Number);
  const luminance = color => {
    const [r, g, b] = channels(color).map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const contrast = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)].sort((a, b) => b - a);
    return (x + .05) / (y + .05);
  };
  const isClear = color => channels(color)[3] === 0;
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!isClear(color)) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  const box = element => { const { left, right, top, bottom } = element.getBoundingClientRect(); return { left, right, top, bottom }; };
  const ownText = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  return {
    page: { scroll: document.documentElement.scrollWidth, paper: behind(document.body) },
    pictures: [...document.querySelectorAll('svg.picture')].map(svg => ({
      id: svg.closest('figure').id, box: box(svg),
      labels: [...svg.querySelectorAll('text')].map(text => ({
        text: text.textContent.trim(), box: box(text),
        px: parseFloat(getComputedStyle(text).fontSize) * svg.getScreenCTM().a,
        contrast: contrast(getComputedStyle(text).fill, behind(svg)),
      })),
      lines: [...svg.querySelectorAll('.line, .hollow, .limit')].map(line => ({
        class: line.getAttribute('class'), contrast: contrast(getComputedStyle(line).stroke, behind(svg)),
        dash: getComputedStyle(line).strokeDasharray,
      })),
      markers: [...svg.querySelectorAll('.mark')].map(mark => contrast(getComputedStyle(mark).fill, behind(svg))),
    })),
    texts: [...document.querySelectorAll('body *:not(svg *)')].filter(ownText).map(e => ({
      text: e.textContent.trim().slice(0, 40), contrast: contrast(getComputedStyle(e).color, behind(e)),
    })),
  };
})()"#;

/// A running browser with one page.
struct Browser {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<Value>,
    session: String,
    last_id: u64,
    /// Addresses that were asked for, and what was complained about.
    asked: Vec<String>,
    complaints: Vec<String>,
    dir: TempDir,
}

impl Browser {
    fn start() -> Self {
        let home = peers().join("browser");
        let program = home.join("chromium");
        assert!(program.exists(), "{} is not there; run ./test, or .ci/peers, which installs it", program.display());
        let dir = tempfile::tempdir().unwrap();
        // A shell, because it can number a child's pipes; it becomes the browser. Which ends when its pipe does.
        let mut child = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#])
            .arg(program)
            .args(["--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--host-resolver-rules=MAP * 0.0.0.0", "--no-proxy-server", "--disable-background-networking"])
            .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
            .arg("about:blank")
            .env("LD_LIBRARY_PATH", home.join("lib"))
            .env("FONTCONFIG_FILE", home.join("fonts.conf"))
            .env("HOME", dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let requests = child.stdin.take().unwrap();
        let answers = read(child.stdout.take().unwrap());
        let session = String::new();
        let (asked, complaints) = (Vec::new(), Vec::new());
        let mut browser = Self { child, requests, answers, session, last_id: 0, asked, complaints, dir };
        let target = browser.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        browser.session = browser.call("Target.attachToTarget", &attach)["sessionId"].as_str().unwrap().to_owned();
        for part in ["Page", "Network", "Log"] {
            browser.call(&format!("{part}.enable"), &json!({}));
        }
        browser.call("Emulation.setScriptExecutionDisabled", &json!({ "value": true }));
        browser
    }

    /// Asks, and waits for the answer.
    fn call(&mut self, method: &str, params: &Value) -> Value {
        self.last_id += 1;
        let mut request = json!({ "id": self.last_id, "method": method, "params": params });
        if !self.session.is_empty() {
            request["sessionId"] = json!(self.session);
        }
        let mut bytes = serde_json::to_vec(&request).unwrap();
        bytes.push(0);
        self.requests.write_all(&bytes).unwrap();
        loop {
            let message = self.receive();
            if message["id"] == self.last_id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
        }
    }

    /// The next answer or event. What the page asked for and what the browser complains about is remembered.
    fn receive(&mut self) -> Value {
        let message = self.answers.recv_timeout(Duration::from_secs(ANSWER_SECONDS)).expect("the browser answers");
        match message["method"].as_str() {
            Some("Network.requestWillBeSent") => self.asked.push(message["params"]["request"]["url"].to_string()),
            Some("Log.entryAdded") => self.complaints.push(message["params"]["entry"]["text"].to_string()),
            _ => {}
        }
        message
    }

    /// Shows a page; returns its address.
    fn show(&mut self, page: &str, width: u32, scheme: &str) -> String {
        let path = self.dir.path().join("report.html");
        fs::write(&path, page).unwrap();
        let url = format!("file://{}", path.display());
        let size = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", &scheme);
        let answer = self.call("Page.navigate", &json!({ "url": url }));
        assert!(answer["errorText"].is_null(), "{answer}");
        while self.receive()["method"] != "Page.loadEventFired" {}
        url
    }

    fn look(&mut self) -> Value {
        let answer = self.call("Runtime.evaluate", &json!({ "expression": LOOK, "returnByValue": true }));
        assert!(answer["exceptionDetails"].is_null(), "{answer}");
        answer["result"]["value"].clone()
    }

    /// The whole page as a picture.
    fn photograph(&mut self) -> Vec<u8> {
        let answer = self.call("Page.captureScreenshot", &json!({ "format": "png", "captureBeyondViewport": true }));
        BASE64_STANDARD.decode(answer["data"].as_str().unwrap()).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Messages as they come, until the browser ends.
fn read(pipe: ChildStdout) -> Receiver<Value> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while pipe.read_until(0, &mut bytes).is_ok_and(|count| count > 0) {
            bytes.pop();
            let message = serde_json::from_slice(&bytes).expect("Chromium writes JSON");
            if sender.send(message).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    receiver
}

/// Where `.ci/peers` puts things: the target folder is where this test program itself is.
fn peers() -> PathBuf {
    let program = env::current_exe().unwrap();
    let target = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    target.expect("tests run from cargo's target folder").join("peers")
}

/// Where screenshots are left.
fn album() -> PathBuf {
    let album = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report");
    fs::create_dir_all(&album).unwrap();
    album
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Everything that keeps somebody from reading a page.
fn illegible(look: &Value, width: u32) -> Vec<String> {
    let mut complaints = Vec::new();
    let width = f64::from(width); // A telephone widens its window for a page that is too wide.
    if number(&look["page"]["scroll"]) > width {
        complaints.push(format!("the page is wider than the window: {}", look["page"]));
    }
    for text in list(&look["texts"]) {
        if number(&text["contrast"]) < TEXT_CONTRAST_MIN {
            complaints.push(format!("pale: {text}"));
        }
    }
    for picture in list(&look["pictures"]) {
        let complaints_before = complaints.len();
        let frame = &picture["box"];
        if number(&frame["right"]) - number(&frame["left"]) < 300.0 || number(&frame["right"]) > width {
            complaints.push(format!("small, or outside of the window: {frame}"));
        }
        for line in list(&picture["lines"]) {
            if number(&line["contrast"]) < LINE_CONTRAST_MIN {
                complaints.push(format!("pale: {line}"));
            }
        }
        if list(&picture["markers"]).iter().any(|contrast| number(contrast) < LINE_CONTRAST_MIN) {
            complaints.push("pale markers".to_owned());
        }
        complaints.extend(illegible_labels(list(&picture["labels"]), frame));
        for complaint in &mut complaints[complaints_before..] {
            complaint.insert_str(0, &format!("{}: ", picture["id"]));
        }
    }
    complaints
}

fn illegible_labels(labels: &[Value], frame: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    for (index, label) in labels.iter().enumerate() {
        if number(&label["px"]) < LETTERS_PX_MIN || number(&label["contrast"]) < TEXT_CONTRAST_MIN {
            complaints.push(format!("small or pale: {label}"));
        }
        let lies_in = |inner: &Value, outer: &Value| {
            ["left", "top"].iter().all(|side| number(&inner[side]) >= number(&outer[side]))
                && ["right", "bottom"].iter().all(|side| number(&inner[side]) <= number(&outer[side]))
        };
        if !lies_in(&label["box"], frame) {
            complaints.push(format!("cut off: {label}"));
        }
        let meets = |a: &Value, b: &Value| {
            number(&a["left"]) < number(&b["right"])
                && number(&b["left"]) < number(&a["right"])
                && number(&a["top"]) < number(&b["bottom"])
                && number(&b["top"]) < number(&a["bottom"])
        };
        for other in labels[index + 1..].iter().filter(|other| meets(&label["box"], &other["box"])) {
            complaints.push(format!("{} and {} lie on each other", label["text"], other["text"]));
        }
    }
    complaints
}

#[test]
fn every_page_is_legible_on_a_telephone_and_on_a_desk_by_day_and_by_night() {
    let mut browser = Browser::start();
    let mut complaints = Vec::new();
    for (name, page) in pages() {
        let count = page.matches("role=\"img\"").count();
        for width in WIDTHS {
            for scheme in SCHEMES {
                browser.show(page, width, scheme);
                if ALBUM.contains(name) {
                    fs::write(album().join(format!("{name}-{width}-{scheme}.png")), browser.photograph()).unwrap();
                }
                let look = browser.look();
                assert_eq!(list(&look["pictures"]).len(), count, "{name}: pictures are lost");
                let found = illegible(&look, width)
                    .into_iter()
                    .map(|complaint| format!("{name} {width} {scheme}: {complaint}"));
                complaints.extend(found);
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn what_keeps_somebody_from_reading_a_page_is_noticed() {
    let (_, page) = &pages()[0];
    let mut browser = Browser::start();
    let mut notices = |from: &str, to: &str, width: u32| {
        assert!(page.contains(from), "{from}");
        browser.show(&page.replace(from, to), width, "light");
        illegible(&browser.look(), width).join("\n")
    };
    assert_eq!(notices("<main>", "<main>", 400), "");
    assert!(notices("--s1: #b94700", "--s1: #f0e0d0", 1200).contains("pale"), "a line");
    assert!(notices("--quiet: #57606a", "--quiet: #d0d0d0", 1200).contains("pale"), "text");
    assert!(notices(".scroll {", ".scroll { min-width: 30rem;", 400).contains("wider than the window"));
    assert!(notices("font: 52px", "font: 30px", 400).contains("small or pale"));
    assert!(notices("font: 52px", "font: 120px", 400).contains("lie on each other"));
    assert!(notices("font: 52px", "font: 120px", 400).contains("cut off"));
}

#[test]
fn lines_differ_in_their_dashes_where_colours_cannot_be_told_apart() {
    let mut browser = Browser::start();
    let (_, page) = pages().iter().find(|(name, _)| *name == "long").unwrap();
    browser.show(page, 1200, "light");
    let look = browser.look();
    let picture = list(&look["pictures"]).iter().find(|picture| picture["id"] == "throughput-over-time").unwrap();
    let mut dashes: Vec<String> = list(&picture["lines"]).iter().map(|line| line["dash"].to_string()).collect();
    dashes.sort();
    dashes.dedup();
    assert_eq!(dashes.len(), 6, "{dashes:?}");
}

#[test]
fn day_and_night_are_different() {
    let mut browser = Browser::start();
    let (_, page) = &pages()[0];
    let paper = SCHEMES.map(|scheme| {
        browser.show(page, 400, scheme);
        browser.look()["page"]["paper"].to_string()
    });
    assert_eq!(paper, ["\"rgb(255, 255, 255)\"", "\"rgb(16, 20, 24)\""]);
}

#[test]
fn a_page_is_complete_without_a_network_and_without_scripts() {
    let mut browser = Browser::start();
    for (name, page) in pages() {
        browser.asked.clear();
        let url = browser.show(page, 400, "light");
        browser.look(); // by when a late request would have been made
        assert_eq!(browser.asked, [format!("\"{url}\"")], "{name}: the page itself and nothing else");
        assert_eq!(browser.complaints, [""; 0], "{name}: its own policy forbids nothing that it needs");
    }
}

#[test]
fn a_page_that_fetches_is_noticed() {
    let mut browser = Browser::start();
    let image = r#"<main><img src="elsewhere.png" alt="">"#;
    browser.show(&pages()[0].1.replace("<main>", image), 400, "light");
    browser.look();
    assert!(!browser.complaints.is_empty(), "the policy of the page stands in the way");
    let open = pages()[0].1.replace("<main>", image).replace("default-src 'none'", "default-src *");
    browser.asked.clear();
    browser.show(&open, 400, "light");
    browser.look();
    assert!(browser.asked.iter().any(|url| url.contains("elsewhere.png")), "{:?}", browser.asked);
}
