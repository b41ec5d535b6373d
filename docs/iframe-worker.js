// Chromium starts no worker for a page that is opened as a file, so the search would need a server. There, run the
// worker's script in a hidden frame of the page, with the interface of a worker.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<script src="${url}"></script>`;
      this.loaded = new Promise((resolve) => (this.frame.onload = resolve)).then(() => {
        this.frame.contentWindow.postMessage = (data) => this.onmessage?.({ data });
      });
      document.body.append(this.frame);
    }

    postMessage(data) {
      this.loaded
        .then(() => this.frame.contentWindow.onmessage({ data }))
        .catch(() => this.onerror?.(new Event("error", { cancelable: true })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
