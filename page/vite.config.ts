import { defineConfig } from 'vite'

// Paths are relative, so that the page works below a path of a reverse proxy, too.
export default defineConfig({
  base: './',
  build: {
    outDir: '../src/darkroom/serve/page',
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: 'es2022',
  },
})
