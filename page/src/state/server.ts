import { computed, signal } from '@preact/signals'
import { api, Problem, type Model, type ServerInfo } from '../api'
import { draft } from './draft'

/** What the server is and has. */
export const server = signal<ServerInfo | null>(null)
/** A key is needed, and none is known. */
export const locked = signal(false)
export const lost = signal(false)

/** The model of the draft. */
export const model = computed<Model | null>(() => {
  const known = server.value
  if (!known) return null
  const name = draft.value.model || known.default_model
  return known.models.find((one) => one.name === name) ?? known.models[0] ?? null
})

export async function readServer(): Promise<boolean> {
  try {
    server.value = await api.server()
    locked.value = false
    lost.value = false
    return true
  } catch (error) {
    if (!(error instanceof Problem)) throw error
    if (error.status === 401) locked.value = true
    else lost.value = true
    return false
  }
}
