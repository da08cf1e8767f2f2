import { signal } from '@preact/signals'
import { api, type Sweep, type SweepSummary } from '../api'
import { onEnd, onPicture } from './queue'
import { locked } from './server'
import { tellProblem } from './ui'

/** Grids: those that there are, and the one that is looked at. */
export const sweeps = signal<readonly SweepSummary[] | null>(null)
export const sweep = signal<Sweep | null>(null)
/** The two directions of the grid that is going to be asked for. */
export interface AxisDraft {
  name: string
  values: string
}
export const axes = signal<readonly [AxisDraft, AxisDraft]>([
  { name: 'steps', values: '' },
  { name: '', values: '' },
])
/** The fields of a grid are shown. */
export const sweeping = signal(false)

export async function readSweeps(id: string | null): Promise<void> {
  try {
    if (id) sweep.value = await api.oneSweep(id)
    else sweeps.value = (await api.sweeps()).sweeps
  } catch (error) {
    if (!locked.value) tellProblem(error)
  }
}

/** The axes as the server takes them: a name and values, "steps=10,20,30". */
export const axesAsked = (): string[] =>
  axes.value.filter(({ name, values }) => name && values.trim()).map(({ name, values }) => `${name}=${values.trim()}`)

// A job of the grid that is looked at has come further: read it anew, but not for each of a hundred at once.
let timer = 0
const changed = (job: { id: string }) => {
  if (!sweep.value?.cells.some((cell) => cell.job === job.id)) return
  clearTimeout(timer)
  timer = setTimeout(() => sweep.value && void readSweeps(sweep.value.id), 250)
}
onEnd(changed)
onPicture(changed)
