// Put a player after each link to a sound. Without this script, as on GitHub, the links lead to the files.
for (const link of document.querySelectorAll('.md-content a[href$=".mp3"]')) {
  const player = document.createElement("audio");
  Object.assign(player, { controls: true, preload: "metadata", src: link.href, ariaLabel: link.textContent });
  player.style.cssText = "display: block; width: 100%; max-width: 28rem; height: 2.5rem; margin: 0.3rem 0 0.8rem";
  link.after(player);
  player.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== player) other.pause();
  });
}
