import tailwindcss from "@tailwindcss/vite";

export default defineNuxtConfig({
  compatibilityDate: "2026-11-01",
  devtools: { enabled: false },
  telemetry: { enabled: false },
  css: ["~/assets/css/main.css"],
  vite: {
    plugins: [tailwindcss()],
    // Under which names previews are asked for: at E2B, and at an engine on this machine.
    server: { allowedHosts: [".e2b.app", ".e2b.dev", ".localhost"] },
  },
});
