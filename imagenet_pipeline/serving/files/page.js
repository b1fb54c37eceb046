"use strict";

const CARDS_KEPT = 50;
const at = (id) => document.getElementById(id);
let queue = Promise.resolve();
let stream = null;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function bars(choices) {
  const list = make("ol");
  for (const { name, probability } of choices) {
    const percent = 100 * probability;
    const label = make("div", "label");
    label.append(make("span", "name", name), make("span", "value", `${percent.toFixed(percent < 10 ? 1 : 0)} %`));
    const bar = make("div", "bar");
    const filled = make("div");
    filled.style.width = `${percent}%`;
    bar.append(filled);
    const row = make("li");
    row.append(label, bar);
    list.append(row);
  }
  return list;
}

function fill(card, name, answer) {
  const answered = make("div");
  answered.append(make("h2", "", name));
  if (answer.error) {
    answered.append(make("p", "refused", answer.error));
  } else {
    const picture = make("img");
    picture.src = answer.picture;
    picture.alt = name;
    card.prepend(picture);
    if (answer.message) answered.append(make("p", "", answer.message));
    const subjects = make("div", "subjects");
    for (const { title, choices } of answer.subjects) {
      const subject = make("section");
      if (title) subject.append(make("h3", "", title));
      subject.append(bars(choices));
      subjects.append(subject);
    }
    answered.append(subjects);
  }
  card.className = answer.error ? "card bare" : answer.subjects.length > 1 ? "card wide" : "card";
  card.lastChild.replaceWith(answered);
}

async function ask(photo) {
  try {
    const limit = Number(document.body.dataset.limit);
    if (photo.size > limit) return { error: `This file is too large: more than ${Math.floor(limit / 2 ** 20)} MB.` };
    const response = await fetch("look", { method: "POST", body: photo });
    return await response.json();
  } catch {
    return { error: "There was no answer: the file cannot be read, took too long to send, or the page is no longer served." };
  }
}

function look(photo, name) {
  const card = make("article", "card bare waiting");
  card.append(make("p", "", `${name}: waiting`));
  at("results").prepend(card);
  while (at("results").childElementCount > CARDS_KEPT) at("results").lastChild.remove();
  const answered = queue.then(async () => fill(card, name, await ask(photo)));
  // One photo that fails must not hold up those after it.
  queue = answered.catch((error) => fill(card, name, { error: `This photo cannot be shown (${error.message}).` }));
}

function take(files) {
  for (const file of files) look(file, file.name);
}

async function openCamera() {
  closeCamera();
  at("notice").textContent = "";
  at("camera").disabled = true; // a second request while this one waits would leave a camera on that nobody closes
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: true });
    at("video").srcObject = stream;
    at("viewfinder").hidden = false;
  } catch (error) {
    const refused = error.name === "NotAllowedError" ? "The browser does not let this page use the camera." : "No camera can be used.";
    at("notice").textContent = window.isSecureContext ? refused : "Browsers give a camera only to pages of this machine or over https.";
  } finally {
    at("camera").disabled = false;
  }
}

function closeCamera() {
  for (const track of stream ? stream.getTracks() : []) track.stop();
  at("video").srcObject = stream = null;
  at("viewfinder").hidden = true;
}

function shoot() {
  const video = at("video");
  if (!video.videoWidth) return;
  const canvas = make("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((photo) => {
    if (photo) look(photo, `Camera, ${new Date().toLocaleTimeString("en-GB")}`);
    at("notice").textContent = photo ? "" : "The camera's picture cannot be stored; try again.";
  }, "image/jpeg", 0.95);
}

at("files").addEventListener("change", () => { take(at("files").files); at("files").value = ""; });
at("camera").addEventListener("click", openCamera);
at("close").addEventListener("click", closeCamera);
at("shoot").addEventListener("click", shoot);
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });
}
