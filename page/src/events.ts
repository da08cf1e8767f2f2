import { effect } from '@preact/signals'
import type { Job, State } from './api'
import { preview, put, reconcile } from './state/queue'
import { locked, lost, readServer } from './state/server'
import { preferences } from './state/ui'

/** One connection for all of the caller's jobs. A tab that nobody sees closes its own; a broken one comes back by itself. */

const KINDS: (State | 'progress')[] = ['queued', 'progress', 'finished', 'failed', 'cancelled']
let source: EventSource | null = null
let wait = 1000
let timer = 0

function close(): void {
  clearTimeout(timer)
  source?.close()
  source = null
}

function connect(): void {
  close()
  if (locked.value) return
  source = new EventSource('api/events')
  source.onopen = () => {
    wait = 1000
    if (lost.value) void readServer()
  }
  for (const kind of KINDS) source.addEventListener(kind, (event) => put(JSON.parse(event.data) as Job))
  source.addEventListener('live', (event) => reconcile((JSON.parse(event.data) as { jobs: string[] }).jobs))
  source.addEventListener('preview', (event) => {
    if (!preferences.value.previews) return
    const { id, preview: jpeg } = JSON.parse(event.data) as { id: string; preview: string }
    preview(id, jpeg)
  })
  source.onerror = () => {
    close()
    timer = setTimeout(() => void readServer().then(connect), wait)
    wait = Math.min(2 * wait, 15_000)
    if (wait > 2000) lost.value = !locked.value
  }
}

export function watchEvents(): void {
  effect(() => {
    if (!locked.value) connect()
    else close()
  })
  document.addEventListener('visibilitychange', () => (document.hidden ? close() : connect()))
}
