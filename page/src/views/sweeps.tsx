import { useEffect } from 'preact/hooks'
import { api, sheetOf, thumbOf, type Sweep, type SweepCell } from '../api'
import { moment, t } from '../i18n'
import { take } from '../state/actions'
import { ofPicture } from '../state/source'
import { readSweeps, sweep, sweeps } from '../state/sweeps'
import { openPicture, tellProblem } from '../state/ui'

/** Grids: all of them, or one as a table whose cells are used at a click. */
export function Sweeps({ id }: { id: string | null }) {
  useEffect(() => {
    if (id !== sweep.value?.id) sweep.value = null
    void readSweeps(id)
  }, [id])
  if (!id) return <List />
  const one = sweep.value
  return one ? <Grid one={one} /> : <p class="empty">…</p>
}

const progress = (one: { state: Sweep['state']; finished: number; n: number }) =>
  one.state === 'finished' ? t('finished') : `${t(one.state === 'queued' || one.state === 'running' ? 'queue' : one.state)}: ${t('badge', { n: one.finished, all: one.n })}`

function List() {
  const all = sweeps.value
  return (
    <section class="sweeps" aria-label={t('allSweeps')}>
      <h2>{t('allSweeps')}</h2>
      {all && !all.length ? <p class="empty">{t('noSweeps')}</p> : null}
      <ul>
        {all?.map((one) => (
          <li key={one.id}>
            <a href={`#sweeps/${one.id}`}>{one.prompt || t('noPrompt')}</a>
            <small>
              {one.axes.map((axis) => `${axis.name} (${axis.labels.length})`).join(' × ')} · {progress(one)} · <time>{moment(one.created)}</time>
            </small>
          </li>
        ))}
      </ul>
    </section>
  )
}

function Grid({ one }: { one: Sweep }) {
  const [across, down, deep] = one.axes
  const live = one.state === 'queued' || one.state === 'running'
  const blocks = [...new Set(one.cells.map((cell) => cell.z))]
  const rows = [...new Set(one.cells.map((cell) => cell.y))]
  const end = () =>
    api.cancelSweep(one.id).then(
      (next) => (sweep.value = next),
      (error: unknown) => tellProblem(error),
    )
  return (
    <section class="sweeps" aria-label={t('sweep')}>
      <p>
        <a href="#sweeps">{t('allSweeps')}</a>
      </p>
      <h2 dir="auto">{one.prompt || t('noPrompt')}</h2>
      <p role="status">
        {progress(one)} {live ? <progress max={one.n} value={one.finished} aria-label={t('sweep')} /> : null}
      </p>
      <div class="row wrap">
        <a class="button" href={`${sheetOf(one.id)}?download=true`} download={`${one.id}.png`}>
          {t('sweepSheet')}
        </a>
        {live ? (
          <button type="button" onClick={() => void end()}>
            {t('cancel')}
          </button>
        ) : null}
      </div>
      <p>
        <small>{t('sweepUse')}</small>
      </p>
      {blocks.map((z) => (
        <div key={z} class="sheet" tabIndex={0} role="group" aria-label={deep?.labels[z] ?? t('sweep')}>
          <table>
            {deep ? <caption>{deep.labels[z]}</caption> : null}
            <thead>
              <tr>
                {down ? <td /> : null}
                {across!.labels.map((label) => (
                  <th key={label} scope="col">
                    {label}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {rows.map((y) => (
                <tr key={y}>
                  {down ? <th scope="row">{down.labels[y]}</th> : null}
                  {one.cells
                    .filter((cell) => cell.y === y && cell.z === z)
                    .map((cell) => (
                      <td key={cell.job}>
                        <Cell cell={cell} />
                      </td>
                    ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      ))}
    </section>
  )
}

function Cell({ cell }: { cell: SweepCell }) {
  const { image } = cell
  if (!image) return <span class={cell.state === 'failed' ? 'fault cell' : 'cell'}>{cell.error ?? t(cell.state === 'queued' || cell.state === 'running' ? 'sweepWaits' : cell.state)}</span>
  return (
    <>
      <button type="button" class="cell" aria-label={`${t('useAll')}: ${cell.words}`} onClick={() => void take(() => ofPicture(image.id), 'all')}>
        <img src={thumbOf(image.id)} alt={cell.words} loading="lazy" />
      </button>
      <button type="button" class="plain chip" aria-label={t('open', { prompt: cell.words })} onClick={() => openPicture(image.id)}>
        {t('enlargeView')}
      </button>
    </>
  )
}
